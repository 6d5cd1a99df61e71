# Two commands matter: `make demo` and `make test`. Each sets up what it needs.

TARGET := $(or $(CARGO_TARGET_DIR),target)
EMBANK := $(TARGET)/release/embank
DEMO   := $(TARGET)/demo-bank
MODEL  := all-minilm-l6-v2

.PHONY: help demo test torture eval setup build model lint deny fuzz bench-embed bench-pipeline bench-race bench-index

help:
	@echo "make demo   embed dev_data/docs with a real model, build an index, ask three questions"
	@echo "make test   all tests"
	@echo "make torture   1,000 kills at random moments, each compared with a run left alone; SEED=n, KILLS=n"
	@echo "make eval   nDCG@10 and recall@10 on dev_data's judgements"
	@echo "make lint   format, clippy and rustdoc, as CI does"
	@echo "make deny   licences, sources and advisories of the dependencies, by deny.toml"
	@echo "make fuzz   every fuzz target for ten minutes, on stable Rust; SECONDS=60 for less"
	@echo "make bench-index   every kind of index over 110,000 real sentences: docs/benchmarks/index.md"
	@echo "make bench-pipeline | bench-embed | bench-race   the tables of docs/benchmarks; the last two fetch rivals from PyPI"

setup:
	@scripts/setup.sh

build: setup
	cargo build --release --locked

model: build
	@$(EMBANK) model pull $(MODEL)

demo: model
	@rm -rf $(DEMO)
	$(EMBANK) --bank $(DEMO) sync dev_data/docs
	@for question in \
		"How do I keep my rain barrel from cracking in winter?" \
		"What should I do first when somebody burns a hand on the stove?" \
		"How often should I check my hives for mites?"; do \
		echo; echo "\$$ embank search \"$$question\" -k 3"; \
		$(EMBANK) --bank $(DEMO) search "$$question" -k 3; \
	done

eval: model
	@$(EMBANK) --quiet --bank $(TARGET)/eval-bank sync dev_data/docs > /dev/null
	@$(EMBANK) --bank $(TARGET)/eval-bank eval --queries dev_data/queries.tsv --qrels dev_data/qrels.txt

test: model
	cargo test --release --locked

torture: build
	scripts/torture.py $(EMBANK) --kills $(or $(KILLS),1000) --seed $(or $(SEED),1)

lint: setup
	cargo fmt --all -- --check
	cargo clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --lib

deny: setup
	@scripts/deny.sh

fuzz: setup
	@scripts/fuzz.sh $(or $(SECONDS),600)

bench-pipeline: build
	python3 benches/pipeline/run.py --embank $(EMBANK)

bench-embed: model
	"$$(scripts/bench-env.sh | tail -1)" benches/embed/run.py --embank $(EMBANK)

bench-race: model
	"$$(scripts/bench-env.sh | tail -1)" benches/race/run.py --embank $(EMBANK)

bench-index: model
	python3 benches/index/run.py --embank $(EMBANK) --fresh
