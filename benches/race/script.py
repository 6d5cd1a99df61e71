"""The script that somebody would write: `script.py DOCS STORE MODEL` embeds what is new, drops what is gone."""

import hashlib
import sys
from pathlib import Path

import lancedb

docs, store, model = sys.argv[1:]
texts = {path.name: path.read_text() for path in sorted(Path(docs).glob("*.txt"))}
hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
db = lancedb.connect(store)
table = db.open_table("texts") if "texts" in db.list_tables().tables else None
known = {}
if table is not None:
    found = table.search().select(["id", "hash"]).limit(None).to_arrow()
    known = dict(zip(found["id"].to_pylist(), found["hash"].to_pylist()))
gone = [name for name in known if name not in texts]
if gone:
    table.delete("id IN (" + ", ".join(f"'{name}'" for name in gone) + ")")
new = [name for name in texts if known.get(name) != hashes[name]]
if new:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model)
for start in range(0, len(new), 512):
    part = new[start : start + 512]
    vectors = encoder.encode([texts[name] for name in part], normalize_embeddings=True)
    rows = [
        {"id": name, "hash": hashes[name], "text": texts[name], "vector": vector} for name, vector in zip(part, vectors)
    ]
    if table is None:
        table = db.create_table("texts", rows)
    else:
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
print(f"{len(new)} embedded, {len(gone)} removed, {len(texts) - len(new)} unchanged")
