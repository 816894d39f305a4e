#!/usr/bin/env bash
# Trains and evaluates the tiny Flamingo on one machine: makes a synthetic world, trains a vision
# encoder, a language model and a Flamingo, and tests what it learns from a few examples.
#
#   launch/demo.sh                                      writes runs/demo, with a folder report
#   launch/demo.sh --config.seed=2 --output=runs/demo2  another seed, also for the world
#   launch/demo.sh --config.model.lm.num_layers=6 ...   any field of configs/tiny.py, for all stages
#   launch/demo.sh --size=smoke                         a small world and only the format task, to
#                                                       check that all parts run
#   launch/demo.sh --size=gpu                           a larger model and world, for ten minutes of
#                                                       one GPU, with up to 32 examples
#   launch/demo.sh --model=small                        with another language model: small or large
#   launch/demo.sh --from=DIR                           takes the world, the tokenizer and the vision
#                                                       encoder of another demo
#   launch/demo.sh --towers                             ends before the Flamingo, with both towers
#   launch/demo.sh --lm_updates=800                     trains the language model for so many updates,
#                                                       and not until it passes its probe
#
# Started again, it continues: a stage with an export is skipped, and an interrupted stage resumes.
# After a change of configs/tiny.py, train compares each export with what it would make.
set -euo pipefail

# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

output=runs/demo
size=demo
seed=1
model=base
made=
only_towers=no
lm_updates=
overrides=()
for argument in "$@"; do
  case "$argument" in
    --output=?*) output="$(path_of "$argument")" ;;
    --size=demo | --size=smoke | --size=gpu) size="${argument#*=}" ;;
    --model=small | --model=base | --model=large) model="${argument#*=}" ;;
    --from=?*) made="$(path_of "$argument")" ;;
    --towers) only_towers=yes ;;
    --lm_updates=[1-9]*) lm_updates="${argument#*=}" ;;
    --config.seed=?*) seed="${argument#*=}" ;;
    --config.?*=*) overrides+=("$argument") ;;
    -h | --help) usage; exit ;;
    *) unknown_option "$argument" ;;
  esac
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# Paths inside of the repository are relative, so that a rerun finds the files with any --output.
output="${output#"$PWD"/}" made="${made#"$PWD"/}"
started=$SECONDS
[ "$size" != gpu ] || [ "$model" = base ] || die "--size=gpu has a model of its own: leave out" \
  "--model=$model"
if [ -n "$made" ]; then
  for part in world tokenizer contrastive/export; do
    [ -e "$made/$part" ] || die "--from=$made has no $part: give the output of a demo that has ended"
  done
fi
# Every bfloat16 value is rounded to bfloat16. Then closed gates give the language model's output,
# equal to the bit.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_allow_excess_precision=false"
export MPLBACKEND=Agg

# The options of the stages for each size.
world=(--size="$size")
tasks=format,bind2,bind4,format_shuffled,format_hidden,format_held_out
tasks=$tasks,bind2_shuffled,bind2_hidden,bind2_held_out
evaluation=("--task=$tasks")
retrieval=(--config.n=0) # all test pictures
contrastive=()
language_model=()
flamingo=()
if [ "$size" = gpu ]; then
  world+=("--page_mix=0.5,0.15,0.35") # more questions about two objects
  evaluation=("--task=$tasks,questions,questions_hidden" "--shots=0,1,2,4,8,16,32")
fi
if [ "$size" = smoke ]; then
  world+=("--page_mix=0,1,0")
  evaluation=("--task=format,format_shuffled" "--shots=0,4" --config.n=32)
  retrieval=(--config.n=64)
  contrastive=(--config.steps=20 --config.data.datasets.captions.batch_size=32)
  # The model learns no look-up in so few steps: the probe reports it, and the stage does not fail.
  language_model=(--config.steps=40 --config.data.datasets.text.batch_size=8
    --config.optimizer.warmup_steps=10 --config.optimizer.decay_steps=40
    --config.until.every=20 --config.until.required=False)
  flamingo=(--config.steps=20 --config.data.datasets.pages.batch_size=4
    --config.data.datasets.pairs.batch_size=4)
fi

[ -z "$lm_updates" ] || language_model+=("--config.steps=$lm_updates" --config.until.every=0)

# The options are stored: a rerun with other options must not use the old stages. So is the sum of
# the config, when all stages are done: with both the same, an export is what train would make.
options="size=$size seed=$seed ${overrides[*]+"${overrides[*]}"}"
[ "$model" = base ] || options="model=$model $options"
[ -z "$made" ] || options="from=$made $options"
[ -z "$lm_updates" ] || options="lm_updates=$lm_updates $options"
config="config $(cat configs/tiny.py configs/small_models.py | cksum)"
# The argument of configs/tiny.py before the stage.
config_size=
[ "$model" = base ] || config_size="$model,"
[ "$size" != gpu ] || config_size="gpu,"
is_known=no
keep_options "$output" "a demo" "$options"
[ "$(tail -n +2 "$output/options")" != "$config" ] || is_known=yes
[ "$is_known" = yes ] || note_options "$output" "$options"

# Runs a command, and adds its name, seconds and peak memory to $output/usage.txt.
# $1: the name; the rest: the command.
measured() {
  "$PYTHON" - "$output/usage.txt" "$@" <<'PY'
import os, resource, signal, subprocess, sys, time
path, name, *command = sys.argv[1:]
signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command, which saves
start = time.monotonic()
status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
try:
    lines = open(path).readlines() if os.path.exists(path) else []
    lines = [line for line in lines if line.split()[:1] != [name]]
    lines.append(f"{name:<16}{time.monotonic() - start:>8.1f} s{peak:>8.0f} MiB\n")
    open(path, "w").writelines(lines)
except OSError as error:  # the command itself says what fails for it
    print(f"note: {path} is not written: {error}", file=sys.stderr)
sys.exit(status if status >= 0 else 128 - status)
PY
}

# Trains a stage, unless it has an export of these options. $1: the stage; the rest: its options.
# train refuses an export of another run, and leaves one of this run as it is.
stage() {
  local name="$1"
  shift
  if [ "$is_known" = yes ] && [ -e "$output/$name/export" ]; then
    say "== $name: $output/$name/export is there, skipped"
    return
  fi
  say "== $name"
  measured "$name" "$PYTHON" -m flamingo_jax.train --config="configs/tiny.py:$config_size$name" \
    --workdir="$output/$name" --config.seed="$seed" --config.data.tokenizer="$made/tokenizer" \
    --config.evaluate.data.world="$made/world" "$@" ${overrides[@]+"${overrides[@]}"} \
    || stopped $? "the stage $name" "$output/$name"
}

if [ -z "$made" ]; then
  made="$output"
  say "== world"
  measured world "$PYTHON" -m data_pipelines.run --pipeline=world --output="$output/world" \
    --seed="$seed" "${world[@]}"
  measured tokenizer "$PYTHON" -m data_pipelines.run --pipeline=tokenizer --model_type=word \
    --input="$output/world/text" --output="$output/tokenizer"
  stage contrastive --config.data.datasets.captions.path="$output/world/captions" \
    ${contrastive[@]+"${contrastive[@]}"}
fi
# Without --lm_updates this stage ends when the look-up probe is passed. It fails if that never
# happens, because then the Flamingo could not learn the names of pictures either.
stage language_model --config.data.datasets.text.path="$made/world/text" \
  ${language_model[@]+"${language_model[@]}"}
if [ "$only_towers" = yes ]; then
  note_options "$output" "$options" "$config"
  exit
fi
stage flamingo --config.data.datasets.pages.path="$made/world/pages" \
  --config.data.datasets.pairs.path="$made/world/pairs" \
  --config.towers.lm="$output/language_model/export" \
  --config.towers.vision="$made/contrastive/export" ${flamingo[@]+"${flamingo[@]}"}

note_options "$output" "$options" "$config"

say "== report"
if [ "$made" = "$output" ]; then
  measured retrieval "$PYTHON" -m flamingo_jax.evaluate --config=configs/evaluate.py \
    --checkpoint="$output/contrastive/export" --output="$output/contrastive/report" \
    --config.data.world="$output/world" --config.seed="$seed" \
    --task=world_retrieval,world_zero_shot "${retrieval[@]}" \
    || die "the evaluation of the vision encoder did not succeed (the reason is above);" \
      "it is in $output/contrastive/export"
fi
measured evaluation "$PYTHON" -m flamingo_jax.evaluate --config=configs/evaluate.py \
  --checkpoint="$output/flamingo" --output="$output/report" \
  --config.data.world="$made/world" --config.seed="$seed" "${evaluation[@]}" \
  || die "the evaluation did not succeed (the reason is above);" \
    "the trained model is in $output/flamingo/export"

printf '\n'
cat "$output/usage.txt"
printf 'this run: %d s after installation; the report is in %s\n' \
  $((SECONDS - started)) "$output/report"
printf "to try the model in a browser: %s -m pip install 'flamingo_jax[playground]' once, then\n" "$PYTHON"
printf '  %s -m flamingo_jax.playground --checkpoint=%s\n' "$PYTHON" "$output/flamingo"
