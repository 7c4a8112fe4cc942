# make help says it all. CI calls "make test".
#
# A line "name: ## text" is a target in the help; "##@ text" is a heading.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory

# The binary says what it was built from. The ceiling keeps git from finding a repository
# around an unpacked archive.
GIT     := GIT_CEILING_DIRECTORIES="$(abspath ..)" git
VERSION ?= $(shell $(GIT) describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell $(GIT) describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

TOOLS := bin/tools
# Where Go files of ours are; test/architecture_test.go says that there are no others.
ROOMS := envelope bus agent gateway cmd test
# What runs in seconds and needs no server: these packages, and these tests of test/.
UNIT      := ./envelope/... ./bus ./bus/local/... ./agent ./gateway/...
UNIT_TEST := ^Test(Architecture|Files|Check|EveryFence|Judge)

# Knobs, as in: make fuzz FUZZTIME=5m
FUZZTIME   ?= 30s
BENCHTIME  ?= 1s
DEMO_ARGS  ?=
BENCH_ARGS ?=
TEST_ARGS  ?=
MODEL_RUNS ?= 5000
MODEL_SEED ?= 0
FAILOVERS  ?= 50
FAILOVER_SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help build demo up test unit race cover fuzz check vet fmt fmt-check lint tidy tidy-check vuln \
	prove demo-proof bench bench-go soak failover failover-bus verdict flow model adversary rotation consul nomad nats openclaw openclaw-clients openclaw-runner inspector mcp chromium lint-tools tools clean summary

help: ## Print this
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

##@ Use it
build: ## Build bin/gatemesh (no CGO)
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/gatemesh ./cmd/gatemesh

demo: build ## Three gateways on the embedded store, one question, the whole timeline (DEMO_ARGS="--once --json")
	@bin/gatemesh demo $(DEMO_ARGS)

up: build consul ## The same as three processes on a three-server Consul with its UI, until Ctrl-C
	@bin/gatemesh demo --store consul $(DEMO_ARGS)

##@ Test it
test: tools check ## Everything CI runs: tools, lint, tests with -race, benchmarks and fuzzing in short, the demo's proof
	@mkdir -p bin
	@$(TOOLS)/gotestsum --format pkgname --junitfile bin/junit.xml -- \
	  -race -timeout 20m $(TEST_ARGS) ./...
	@$(MAKE) bench-go BENCHTIME=1x
	@$(MAKE) fuzz FUZZTIME=10000x # a number, not a time: "go test" can fail when the time runs out while it minimises
	@$(MAKE) demo-proof
	@$(MAKE) summary

unit: ## The fast tests: no Consul, no Nomad, no race detector
	@go test -short $(TEST_ARGS) $(UNIT)
	@go test -short $(TEST_ARGS) -run '$(UNIT_TEST)' ./test

race: consul nomad ## All tests under the race detector
	@go test -race -timeout 20m $(TEST_ARGS) ./...

cover: consul nomad ## Test coverage over all packages: bin/cover.html
	@mkdir -p bin
	@go test -timeout 20m -coverpkg=./... -coverprofile=bin/cover.out $(TEST_ARGS) ./...
	@go tool cover -html=bin/cover.out -o bin/cover.html
	@go tool cover -func=bin/cover.out | tail -n 1

fuzz: ## Run each fuzz target for FUZZTIME (30s)
	@grep -rl --include='*_test.go' '^func Fuzz' $(ROOMS) | while read -r file; do \
	  for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
	    echo "fuzz: $$target in $$(dirname "$$file") for $(FUZZTIME)"; \
	    go test "./$$(dirname "$$file")" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) </dev/null; \
	  done; \
	done

##@ Keep it clean
check: vet fmt-check lint tidy-check ## All that needs no run: vet, gofmt, lint, go.mod

vet: ## go vet, the proofs included
	@go vet ./...
	@go vet -tags proof ./test ./agent/openclaw/... ./gateway/openclawgw

fmt: ## Format all Go files and job specs
	@gofmt -w $(ROOMS)
	@nomad=$$(PATH="$$PATH:$(CURDIR)/$(TOOLS)" command -v nomad) && "$$nomad" fmt nomad || echo "fmt: no nomad binary, job specs left as they are (make nomad)"

fmt-check:
	@out=$$(gofmt -l $(ROOMS)); [ -z "$$out" ] || { echo "not formatted (run: make fmt):"; echo "$$out"; exit 1; } >&2

lint: lint-tools ## golangci-lint, with .golangci.yml
	@$(TOOLS)/golangci-lint run ./...

tidy: ## go mod tidy in every module
	@go mod tidy
	@for m in consul lint nats; do (cd test/tools/$$m && go mod tidy); done

# test/tools/nomad is not here: Nomad's tests need, through a test of a dependency, a package
# that its module no longer has, so "go mod tidy" cannot finish there. What is in its modfile
# builds with -mod=readonly, which is what counts.
tidy-check:
	@for m in . test/tools/consul test/tools/lint test/tools/nats; do \
	  (cd $$m && go mod tidy -diff >/dev/null) || { echo "$$m/go.mod is not tidy (run: make tidy)" >&2; exit 1; }; \
	done

vuln: lint-tools ## govulncheck: known vulnerabilities that our code reaches (skipped, and said so, without a network)
	@mkdir -p bin
	@if $(TOOLS)/govulncheck ./... >bin/vuln.txt 2>&1; then cat bin/vuln.txt; \
	elif grep -qE 'fetching vulnerabilities|dial tcp|no such host|connection refused|Forbidden' bin/vuln.txt; then \
	  echo "SKIPPED: the vulnerability database cannot be reached from here, so nothing was checked:"; tail -n 3 bin/vuln.txt; \
	else cat bin/vuln.txt; exit 1; fi

##@ Prove it (bin/proof/NAME.json; fails when a promise is broken)
prove: demo-proof model adversary rotation failover verdict flow mcp openclaw-runner openclaw-clients bench soak ## All proofs
	@grep -H '"ok"' bin/proof/*.json

demo-proof: build consul ## The demo on both stores: answered, and accepted, delivered, acked, replied are all there
	@go test -tags proof -count 1 -v -run '^TestProofDemo$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT)

model: ## The protocol as a model, every state of it, and the real bus against it by random runs (MODEL_RUNS, MODEL_SEED)
	@go test -tags proof -count 1 -v -timeout 60m -run '^TestProofModel$$' ./test -rapid.checks $(MODEL_RUNS) -rapid.seed $(MODEL_SEED) -args \
	  -proof $(CURDIR)/bin/proof -commit $(COMMIT)

flow: build consul openclaw ## The plan's flow: a chat message, a model that asks bobby, real checks, the answer; on three gateways and on one; and with real OpenClaw agents (FLOW_QUESTIONS, FLOW_OPENCLAW, FLOW_KILLS)
	@go test -tags proof -count 1 -timeout 30m -v -run '^TestProofFlow$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT) $(if $(FLOW_QUESTIONS),-flow.questions $(FLOW_QUESTIONS)) \
  $(if $(FLOW_OPENCLAW),-flow.openclaw $(FLOW_OPENCLAW)) $(if $(FLOW_KILLS),-flow.kills $(FLOW_KILLS))

failover: build consul ## Owners of the chat accounts end in every way, 50 times each, on three Consul servers with stock settings, while people write on all four channels (FAILOVERS, FAILOVER_SEED)
	@go test -tags proof -count 1 -timeout 120m -v -run '^TestProofFailover$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT) \
	  $(if $(FAILOVERS),-channels.each $(FAILOVERS)) $(if $(FAILOVER_SEED),-channels.seed $(FAILOVER_SEED)) $(if $(FAILOVER_WAYS),-channels.ways $(FAILOVER_WAYS))

verdict: build consul ## One gateway and three, with the same people and broken in the same ways, on three Consul servers: which is worth it (8 minutes; VERDICT_ARGS)
	@bin/gatemesh verdict --proof bin/proof/verdict.json --commit $(COMMIT) $(VERDICT_ARGS)

failover-bus: consul ## Owners end in every way, 50 times each, on three Consul servers with stock settings (FAILOVERS, FAILOVER_SEED): how long until the next one, and was anything doubled
	@go test -tags proof -count 1 -timeout 120m -v -run '^TestProofFailoverBus$$' ./test -failover.each $(FAILOVERS) -failover.seed $(FAILOVER_SEED) -args \
	  -proof $(CURDIR)/bin/proof -commit $(COMMIT)

adversary: consul ## Somebody who may write anything into the store, and who has one gateway's key, does what he can, on three Consul servers
	@go test -tags proof -count 1 -timeout 30m -v -run '^TestProofAdversary$$' ./test -args \
	  -proof $(CURDIR)/bin/proof -commit $(COMMIT)

soak: build consul ## 100,000 messages through three gateway processes and three Consul servers under faults (SOAK_MESSAGES, SOAK_SEED)
	@go test -tags proof -count 1 -timeout 60m -v -run '^TestProofSoak$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT)

rotation: build consul ## Every key replaced twice under load, nothing lost or refused, the old ones dead (ROTATION_MESSAGES)
	@go test -tags proof -count 1 -timeout 30m -v -run '^TestProofRotation$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT)

bench: build consul nats bench-go ## Delivery beside the store's floor, a naive bus and NATS JetStream, on one and three Consul servers (BENCH_ARGS)
	@bin/gatemesh bench --proof bin/proof/bench.json --commit $(COMMIT) $(BENCH_ARGS)

bench-go: ## The Go benchmarks, each for BENCHTIME (1s)
	@go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) \
	  $$(grep -rl --include='*_test.go' '^func Benchmark' $(ROOMS) | xargs -n 1 dirname | sort -u | sed 's|^|./|')

##@ Tools (pinned in test/tools, built into bin/tools)
tools: consul nomad lint-tools chromium ## All that the tests need

chromium: ## Debian's Chromium, for the tests of the pages; without it, apt-get or root they are skipped, and say so
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "installing Chromium"; { apt-get install -y -qq chromium || { apt-get update -qq && apt-get install -y -qq chromium; }; } >/dev/null 2>&1; fi; \
	  command -v chromium >/dev/null || echo "no Chromium: the tests of the pages are skipped"; }

consul: ## Consul 1.22, unless one is on PATH or named by GATEMESH_CONSUL_BIN
	@found=$${GATEMESH_CONSUL_BIN:-$$(command -v consul || true)}; \
	if [ -n "$$found" ]; then echo "consul: using $$found"; else test/tools/build consul "3 to 9 minutes"; fi

nomad: ## Nomad 1.10, unless one is on PATH or named by GATEMESH_NOMAD_BIN
	@found=$${GATEMESH_NOMAD_BIN:-$$(command -v nomad || true)}; \
	if [ -n "$$found" ]; then echo "nomad: using $$found"; else test/tools/build nomad "2 to 8 minutes"; fi

openclaw: ## OpenClaw and the Node that it needs, for the tests with the real programs (npm; about 1 GB)
	@test/tools/npm openclaw "half a minute to 5 minutes, about 1 GB"

inspector: ## The MCP inspector and the Node that it needs (npm; about 300 MB)
	@test/tools/npm inspector "half a minute, about 300 MB"

openclaw-runner: openclaw ## An agent of the mesh behind which an agent of a real OpenClaw gateway stands, which is killed in the middle of a turn
	@go test -tags proof -count 1 -timeout 20m -v -run '^TestProofOpenClawRunner$$' ./agent/openclaw -args \
	  -proof $(CURDIR)/bin/proof -commit $(COMMIT)

mcp: build consul openclaw inspector ## The MCP server, as the MCP inspector and agents of a real OpenClaw gateway use it
	@go test -tags proof -count 1 -timeout 20m -v -run '^TestProofMCP$$' ./test -args \
	  -binary $(CURDIR)/bin/gatemesh -proof $(CURDIR)/bin/proof -commit $(COMMIT)

openclaw-clients: openclaw ## OpenClaw's own programs (health, gateway call, agent, tui) against two gateways, and what these say against its schema (the TUI needs tmux)
	@go test -tags proof -count 1 -v -run '^TestProofOpenClawClients$$' ./gateway/openclawgw -args \
	  -proof $(CURDIR)/bin/proof -commit $(COMMIT)

nats: ## The peer of the benchmark: three NATS JetStream servers in one program
	@test/tools/build nats "1 minute"

lint-tools: ## golangci-lint, gotestsum, govulncheck
	@test/tools/build lint "2 to 6 minutes"

clean: ## Remove what was built, but for the tools
	@[ ! -d bin ] || find bin -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +

# The last line of "make test", read from what gotestsum counted: the runs after it must not
# be taken for the whole.
summary:
	@awk -v RS='<' '/^testcase /{n++} /^failure/{f++} /^skipped/{s++} \
	  END { printf "%d passed, %d failed, %d skipped\n", n-f-s, f, s; exit n == 0 }' bin/junit.xml
