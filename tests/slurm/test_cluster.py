"""Cluster files: read whole or refused whole, with the key and what is allowed."""

from pathlib import Path

import pytest

from orchestrator.errors import InputError, RecipeError
from orchestrator.notify import Notify
from slurm.cluster import FOLDER, Cluster, Container, read_cluster, reopen_cluster, write_cluster


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_reads_and_survives_being_written(tmp_path: Path, path: Path) -> None:
    cluster = read_cluster(path.stem)

    write_cluster(tmp_path / "copy.yaml", cluster)

    assert cluster == read_cluster(tmp_path / "copy.yaml")


def test_a_file_without_a_name_is_called_after_itself(tmp_path: Path) -> None:
    assert read_cluster(written(tmp_path, "partition: gpu\n")).name == "mine"


def test_all_faults_are_told_at_once_with_what_was_probably_meant(tmp_path: Path) -> None:
    path = written(tmp_path, "partitoin: gpu\ngpus_per_node: many\nchecks: {disk: 3}\ngpu_flag: gpu\n")

    with pytest.raises(RecipeError) as caught:
        read_cluster(path)

    told = str(caught.value)
    missing = [part for part in ("'partition'?", "gpus_per_node", "checks.disk", "gres") if part not in told]
    assert not missing, told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("account: 'a\n\n#SBATCH --wrap=x'", "account must be one line|account: must be one line"),
        ("extra: {nodes: 3}", "extra.nodes: cannot be set here"),
        ("extra: {'wrap; rm': 3}", "no flag of sbatch"),
        ("environment: {API_KEY: abc}", "holds a secret"),
        ("environment: {PROXY: 'http://me:secret@host'}", "holds a secret"),
        ("environment: {'A=B; rm': abc}", "no name of an environment variable"),
        ("setup: [module load x, export WANDB_API_KEY=abc]", r"setup.* holds a secret \(WANDB_API_KEY\)"),
        ("setup: ['export https_proxy=http://me:hunter2@proxy']", "setup.* holds a secret"),
        ("srun: ['--export=ALL,HF_TOKEN=abc']", r"srun.* holds a secret \(HF_TOKEN\)"),
        ("extra: {export: 'ALL,DB_PASSWORD=abc'}", r"extra.export.* holds a secret \(DB_PASSWORD\)"),
        ("comment: 'token=abc'", r"comment.* holds a secret \(token\)"),
        ("container: {kind: pyxis}", "container.image"),
        ("signal_s: 0", "signal_s"),
        ("name: local", "'local'"),
        ("max_nodes: 0", "max_nodes: must be above 0"),
        ("- a\n- b", "holds no mapping"),
        ("a: [", "is not YAML: line 1"),
        ("account: mine\naccount: yours", "line 2, column 1: the key account is written twice"),
        ("hardware: {restart_s: 60, restart_s: 600}", "the key restart_s is written twice"),
        ("comment: &again [*again]", "comment"),
    ],
)
def test_what_cannot_be_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((RecipeError, InputError), match=message):
        read_cluster(written(tmp_path, text))


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$MY_TOKEN"', "export TOKENIZERS_PARALLELISM=false",
        "export AWS_WEB_IDENTITY_TOKEN_FILE=/run/secrets/token", "module load cuda/12.4",
    ],
)  # fmt: skip
def test_a_line_that_only_says_where_a_secret_is_may_stand(tmp_path: Path, line: str) -> None:
    cluster = read_cluster(written(tmp_path, f"setup: ['{line}']\nenvironment: {{TOKENIZERS_PARALLELISM: 'false'}}\n"))

    assert cluster.setup == (line,)


def test_the_copy_in_a_run_folder_is_for_its_owners_eyes(tmp_path: Path) -> None:
    write_cluster(tmp_path / "cluster.yaml", Cluster(name="c"))

    assert (tmp_path / "cluster.yaml").stat().st_mode & 0o777 == 0o600


def test_an_unknown_cluster_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean 'example_a100'.*example_h100"):
        read_cluster("example_a10")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"there is no cluster file no/such.yaml"):
        read_cluster("no/such.yaml")


def test_a_written_cluster_file_is_reopened_as_the_same_cluster_and_an_edited_one_tells_its_faults(
    tmp_path: Path,
) -> None:
    cluster = Cluster(
        name="c", setup=("module load x",), exclude=("n1",), ledger=tmp_path / "ledger", srun=("--mpi=none",),
        notify=Notify(command=("cat",)), container=Container(kind="pyxis", image="i", mounts=("/a:/b",)),
    )  # fmt: skip
    write_cluster(tmp_path / "c.yaml", cluster)

    assert reopen_cluster(tmp_path / "c.yaml") == cluster == read_cluster(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("name: c\npartitoin: main\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="partition"):
        reopen_cluster(tmp_path / "c.yaml")
