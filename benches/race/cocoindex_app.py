"""The same with cocoindex, as its guide has it: walk a folder, embed each file, declare a row in LanceDB.

The table gets cocoindex's default vector index.

    RACE_DOCS=… RACE_STORE=… RACE_MODEL=… COCOINDEX_DB=… cocoindex update cocoindex_app.py
"""

import os
import pathlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import cocoindex as coco
from cocoindex.connectors import lancedb, localfs
from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder
from cocoindex.resources.file import FileLike, PatternFilePathMatcher
from numpy.typing import NDArray

STORE = coco.ContextKey[lancedb.LanceAsyncConnection]("race_store")
EMBEDDER = coco.ContextKey[SentenceTransformerEmbedder]("embedder", detect_change=True)


@dataclass
class Text:
    id: str
    text: str
    vector: Annotated[NDArray, EMBEDDER]


@coco.lifespan
async def lifespan(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    builder.provide(STORE, await lancedb.connect_async(os.environ["RACE_STORE"]))
    builder.provide(EMBEDDER, SentenceTransformerEmbedder(os.environ["RACE_MODEL"]))
    yield


@coco.fn(memo=True)
async def process(file: FileLike, table: lancedb.TableTarget[Text]) -> None:
    text = await file.read_text()
    vector = await coco.use_context(EMBEDDER).embed(text)
    table.declare_row(row=Text(id=file.file_path.path.name, text=text, vector=vector))


@coco.fn
async def main(docs: pathlib.Path) -> None:
    schema = await lancedb.TableSchema.from_class(Text, primary_key=["id"])
    table = await lancedb.mount_table_target(STORE, table_name="texts", table_schema=schema)
    table.declare_vector_index(column="vector")
    files = localfs.walk_dir(docs, recursive=True, path_matcher=PatternFilePathMatcher(included_patterns=["**/*.txt"]))
    await coco.mount_each(process, files.items(), table)


app = coco.App(coco.AppConfig(name="Race"), main, docs=pathlib.Path(os.environ["RACE_DOCS"]))
