"""Two processes train exactly as one does on the same records, whatever the launcher made of the model."""

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from two_processes import CASES, STEPS, run_case, run_cases

from processes import start_two
from sightbridge.config.catalogue import find_launcher
from sightbridge.errors import SettingsError


def launcher_environment(name):
    """What ``accelerate launch`` makes of one of the shipped files, on a machine without a GPU."""
    settings = yaml.safe_load(find_launcher(name).read_text())
    if name == "ddp":
        return {"ACCELERATE_USE_CPU": "true"}
    if name == "fsdp2":
        options = {key.upper(): str(value) for key, value in settings["fsdp_config"].items()}
        return {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", **options}
    options = {f"ACCELERATE_DEEPSPEED_{key.upper()}": str(value) for key, value in settings["deepspeed_config"].items()}
    options["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = options.pop("ACCELERATE_DEEPSPEED_ZERO3_INIT_FLAG")
    use_cpu = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}  # the first would switch DeepSpeed off
    return {"ACCELERATE_USE_DEEPSPEED": "true", "LOCAL_WORLD_SIZE": "2", **use_cpu, **options}


def train_on_two(launcher, cases, folder):
    """What both processes ended with, case by case."""
    start_two(launcher_environment(launcher), run_cases, folder, list(cases))
    return [torch.load(folder / f"process-{rank}.pt") for rank in "01"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process ends with; each case runs once."""
    folder, done = tmp_path_factory.mktemp("alone"), {}
    return lambda name: done.setdefault(name, None) or done.update({name: run_case(name, folder, 1)}) or done[name]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    return train_on_two("ddp", CASES, folder), folder


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return train_on_two("fsdp2", CASES, tmp_path_factory.mktemp("fsdp2"))


def compare(name, first, second, alone, launcher):
    """Losses, norms, evaluations and the saved weights; a difference is only due to another order of sums."""
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert first["samples"] == pytest.approx(alone["samples"])
    assert first["validation"] == second["validation"] == pytest.approx(alone["validation"], rel=1e-5)
    assert first["answers"] == second["answers"] == alone["answers"]
    assert list(first["saved"]) == [STEPS] and not second["saved"]
    saved, expected = first["saved"][STEPS], alone["saved"][STEPS]
    assert saved.keys() == expected.keys()
    widest = max((saved[key] - weights).abs().max().item() for key, weights in expected.items())
    print(f"two processes ({launcher}) and one, {name}: widest difference of a weight {widest:.1e}")
    assert widest < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, ddp, alone):
    (first, second), _ = ddp
    compare(name, first[name], second[name], alone(name), "ddp")
    for key, weights in first[name]["own"].items():
        assert torch.equal(weights, second[name]["own"][key]), key


def test_only_the_main_process_logs(ddp):
    _, folder = ddp
    assert len((folder / "connector" / "log.jsonl").read_text().splitlines()) == STEPS + 1


@pytest.mark.parametrize("name", CASES)
def test_fsdp2_trains_as_one(name, fsdp2, alone):
    first, second = fsdp2
    compare(name, first[name], second[name], alone(name), "fsdp2")
    whole = alone(name)["own"]
    for key, weights in whole.items():
        held = [run[name]["own"][key].numel() for run in fsdp2]
        kept_whole = key.startswith("vision_tower.") and "vision_tower" not in CASES[name]["trained"]
        assert sum(held) == weights.numel() * (2 if kept_whole else 1), key


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["zero2", "zero3"])
def test_deepspeed_trains_as_one(launcher, alone, tmp_path):
    pytest.importorskip("deepspeed")
    cases = ["connector", "all parts", "t5", "accumulation", "recomputed"]
    first, second = train_on_two(launcher, cases, tmp_path)
    for name in cases:
        compare(name, first[name], second[name], alone(name), launcher)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3", "zero3-offload"])
def test_accelerate_reads_the_shipped_files(name):
    config = load_config_from_file(str(find_launcher(name)))
    assert config.num_machines == 1 and config.mixed_precision == "no"
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")


def test_an_unknown_launcher_is_told_with_the_nearest():
    with pytest.raises(SettingsError, match=r"unknown launcher 'zero4'; there are ddp, fsdp2, .*zero3"):
        find_launcher("zero4")
