#!/bin/sh
# Installs each client of the server into an environment of its own: install.sh FOLDER [NAME...]
# A client whose registry can't be reached is left out, and its tests are skipped.
set -u
folder=$1
shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
PYTHON=${PYTHON:-python3}

python_client() {  # NAME PACKAGE...
  name=$1
  shift
  [ -e "$folder/$name/.ready" ] && return
  rm -rf "${folder:?}/$name"
  "$PYTHON" -m venv "$folder/$name" && "$folder/$name/bin/python" -m pip install -q --disable-pip-version-check "$@" \
    && touch "$folder/$name/.ready" || echo "$name was not installed"
}

# One of Dynamo's requirements is on NVIDIA's own index only; the worker does without it.
dynamo_client() {
  python_client dynamo uvloop 'pydantic<2.13.5' pyyaml msgspec transformers aiohttp pyzmq prometheus-client sortedcontainers
  "$folder/dynamo/bin/python" -m pip install -q --no-deps ai-dynamo ai-dynamo-runtime && project dynamo
}

# A client that runs this project too: its packages are those of the environment that installs.
project() {
  purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$PYTHON" -c "$purelib" > "$("$folder/$1/bin/python" -c "$purelib")/project.pth"
}

node_client() {  # NAME PACKAGE...
  name=$1
  shift
  [ -e "$folder/$name/.ready" ] && return
  rm -rf "${folder:?}/$name"
  mkdir -p "$folder/$name"
  (cd "$folder/$name" && npm init -y >/dev/null && npm install --silent --no-audit --no-fund "$@") \
    && touch "$folder/$name/.ready" || echo "$name was not installed"
}

install() {
  case $1 in
    openai) python_client openai openai pydantic ;;
    anthropic) python_client anthropic anthropic ;;
    instructor) python_client instructor instructor ;;
    langchain) python_client langchain langchain langchain-openai ;;
    litellm) python_client litellm litellm ;;
    pydantic-ai) python_client pydantic-ai 'pydantic-ai-slim[openai]' ;;
    smolagents) python_client smolagents 'smolagents[openai]' ;;
    qwen-agent) python_client qwen-agent 'qwen-agent[python_executor]' soundfile tqdm python-dateutil ;;
    lm-eval) python_client lm-eval 'lm-eval[api]' transformers ;;
    otel) python_client otel opentelemetry-sdk opentelemetry-exporter-otlp-proto-http ;;
    schemathesis) python_client schemathesis schemathesis ;;
    sglang-router) python_client sglang-router sglang-router ;;
    ray) python_client ray 'ray[serve]' && project ray ;;
    dynamo) dynamo_client ;;
    openai-js) node_client openai-js openai ;;
    ai) node_client ai ai @ai-sdk/openai-compatible zod ;;
    qwen-code) node_client qwen-code node@22 @qwen-code/qwen-code ;;
    codex) node_client codex @openai/codex ;;
    *) echo "no client $1" >&2; exit 2 ;;
  esac
}

[ $# -gt 0 ] || set -- openai anthropic instructor langchain litellm pydantic-ai smolagents qwen-agent lm-eval schemathesis otel \
  sglang-router ray dynamo openai-js ai qwen-code codex
for client in "$@"; do install "$client"; done
