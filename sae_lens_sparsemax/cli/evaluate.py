"""The command ``evaluate``: SAELens's harness, or one of the suites, on one saved SAE."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.display.tables import text_table

HELP = "Measure a saved SAE of any SAELens architecture."
OPTIONS = {"--suite", "--config", "--groups", "--output", "--overwrite", "--debug", "--help"}
SUITES = ("saelens", "text", "vision", "all")

EPILOG = """\
suites:
  saelens   SAELens's own harness with every metric on (the default for language models)
  text      reconstruction (NMSE variants, explained variance), L0 distribution, dead concepts, cross-entropy,
            KL divergence, on named sets of text
  vision    reconstruction and geometry (FVU variants, CS, CKNNA, decoder orthogonality) over tokens and images,
            L0 per token, per image and against complexity, monosemanticity, zero-shot classification with the
            top-n concepts on and off, with controls (the default for image models)
  all       everything that applies to the SAE's model

examples:
  sparsemax-sae evaluate output/my_run
  sparsemax-sae evaluate output/my_run --dataset_path wikitext103_test.txt --batches 20
  sparsemax-sae evaluate user/repository:blocks.6.hook_resid_post --suite text \\
      --datasets.wikitext103.path wikitext103_test.txt \\
      --datasets.openwebtext.path openwebtext.jsonl --datasets.openwebtext.held_out true --held_out_fraction 0.1
  sparsemax-sae evaluate output/my_clip_run --suite vision --data.path cifar10_test.parquet \\
      --counting_data.path cifar10_train.parquet --encoder facebook/dinov2-base --n_images 5000
  sparsemax-sae evaluate output/my_clip_run --config configs/evaluate/mini_clip_cifar10.yaml --groups zero_shot

Model, hook and context are read from the SAE's metadata; keys replace them. Keys, here or in the YAML file of
--config:
  saelens   model_name, model_class_name, dataset_path, dataset_split, dataset_config, text_column, context_size,
            batches, batch_size, device; without a data set that of the training: name a held-out one for figures to
            report
  text      model_name, model_class_name, hook_name, context_size, datasets.NAME.{path, split, config, text_column,
            held_out}, held_out_fraction, n_tokens, n_prediction_tokens, max_norm, batch_size, device. 'held_out: true'
            takes the documents that training left out by the hash of their text (its 'held_out_fraction')
  vision    model, hook_name, tokens, data.{path, split, config, image_column, label_column, streaming},
            counting_data (the same keys; half of 'data' by default), n_images, n_counting_images, encoder (of
            monosemanticity: a vision model, or 'pixels'), classes (imagenet, caltech101, oxford_pets, ...: their
            names and templates), class_names, templates, n_concepts, controls, threshold, threshold_quantile,
            min_plain_accuracy, seed, batch_size, device

A suite writes results.json, report.md, pictures and a file for each metric group to evaluation/SUITE in the SAE's
folder. A group that was finished with the same settings is kept: the same command goes on where it stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; settings such as ``--device cuda`` are taken out before."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    parser.add_argument("--suite", choices=SUITES, help="what to measure (default: by the SAE's model)")
    parser.add_argument("--config", type=Path, help="YAML file with settings of the suite")
    parser.add_argument("--groups", help="only these metric groups of the suite, with commas between")
    parser.add_argument("--KEY VALUE", dest="_", nargs="?", help="a setting of the suite, e.g. --n_images 5000")
    parser.add_argument("--output", type=Path, help="folder of the results; with saelens, JSON file")
    parser.add_argument("--overwrite", action="store_true", help="measure groups again that are finished")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Evaluate as the arguments say; returns the exit status."""
    from sae_lens_sparsemax.evaluation.suite.evaluate import suite_of
    from sae_lens_sparsemax.models.at_hook import load_sae
    from sae_lens_sparsemax.models.language_models import load_each_once
    from sae_lens_sparsemax.settings.overrides import apply_overrides
    from sae_lens_sparsemax.settings.yaml_reader import read_yaml

    settings = apply_overrides(read_yaml(options.config) if options.config is not None else {}, overrides)
    suite = options.suite
    sae = load_sae(options.path, str(settings.get("device") or "cpu"))
    load = load_each_once()
    if suite is None or suite == "all":
        kind = suite_of(sae)
        suites = ["saelens", "text"] if kind == "text" else ["vision"]
        suites = suites if suite == "all" else suites[:1]
    else:
        suites = [suite]
    for each, own in _shares(suites, settings).items():
        if each == "saelens":
            _saelens(options, sae, load, own, beside_text=len(suites) > 1)
        else:
            _suite(options, sae, load, each, own)
    return 0


def _shares(suites: list[str], settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each suite: all of them where there is one, else those that it knows."""
    if len(suites) == 1:
        return {suites[0]: settings}
    from sae_lens_sparsemax.evaluation.harness import EvaluationSettings
    from sae_lens_sparsemax.evaluation.suite.text import TextSuiteSettings
    from sae_lens_sparsemax.settings.values import refuse_unknown_keys

    known = {
        name: {field.name for field in dataclasses.fields(of)}
        for name, of in (("saelens", EvaluationSettings), ("text", TextSuiteSettings))
    }
    refuse_unknown_keys(settings, set.union(*known.values()), "")
    return {suite: {key: settings[key] for key in settings if key in known[suite]} for suite in suites}


def _saelens(options: argparse.Namespace, sae: Any, load: Any, settings: dict[str, Any], beside_text: bool) -> None:
    from sae_lens_sparsemax.evaluation.harness import EvaluationSettings, evaluate_sae, results_table
    from sae_lens_sparsemax.files import save_json
    from sae_lens_sparsemax.settings.values import build

    given = build(EvaluationSettings, settings)
    result = evaluate_sae(sae, given, load=load)
    on = result["on"]
    print(
        f"\n{options.path} at {on['hook_name']} of {on['model_name']}, on {on['dataset_path']} ({on['dataset_split']})"
    )
    print(text_table(results_table(result)))
    folder = Path(options.path)
    output = options.output or (folder / "evaluation.json" if folder.is_dir() else None)
    if output is not None:
        output = output / "saelens.json" if beside_text and options.output else output
        print(f"All metrics: {save_json(result, output)}")


def _suite(options: argparse.Namespace, sae: Any, load: Any, suite: Any, settings: dict[str, Any]) -> None:
    from sae_lens_sparsemax.evaluation.suite import evaluate_suite
    from sae_lens_sparsemax.evaluation.suite.report import tables

    result = evaluate_suite(
        options.path,
        suite,
        settings,
        sae=sae,
        load=load,
        groups=[name.strip() for name in (options.groups or "").split(",") if name.strip()],
        output=options.output,
        overwrite=options.overwrite,
        say=lambda line: print(line, file=sys.stderr),
    )
    for title, rows in tables(result.results):
        print(f"\n{title}")
        print(text_table(rows))
    print(f"\nReport: {result.report}; all measures: {result.folder / 'results.json'}")
