"""Secrets do not get into what others read, and harmless words stay."""

import time

import pytest

from orchestrator.redaction import Screen, redacted, secrets_of, without

SECRET = "s3cr3tS3cr3tS3cr3t"  # noqa: S105 - it is planted


@pytest.mark.parametrize(
    "text",
    [
        f"https://ada:{SECRET}@mlflow.example.org/api",
        f"https://ada:p@{SECRET}@mlflow.example.org/api",
        f"postgresql+psycopg2://ada:{SECRET}@db/mlflow",
        f"https://bucket.s3.amazonaws.com/a.tar?X-Amz-Date=1&X-Amz-Signature={SECRET}&x=1",
        f"https://account.blob.core.windows.net/a?sv=2020&sig={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET} was set",
        f"password: {SECRET}",
        f"'api_key': '{SECRET}'",
        f'"access_token": "{SECRET} with blanks"',
        f"Authorization: Bearer {SECRET}",
        f"https://hooks.slack.com/services/T000/B000/{SECRET}",
        f"hf_{SECRET}",
        f"ghp_{SECRET}{SECRET}",
        "AKIAIOSFODNN7EXAMPLE",
        f"xoxb-1234-{SECRET}",
        f"eyJhbGciOiJIUzI1.{SECRET}.{SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    shown = redacted(f"before {text} after")

    assert SECRET not in shown
    assert "AKIAIOSF" not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after") or "BEGIN" in text


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 64", "pad_token: <unk>", "tokens_per_step=4096", "key: value", "sqlite:////work/mlflow.db",
        "a secret garden", "https://mlflow.example.org/#/experiments/1", "s3://bucket/shards/{000000..000009}.tar",
        "config.train.optim.lr: 0.0003 -> 0.0002", "step_00004000", "the basic idea of a bearer",
        "/models/hf_vicuna_7b_v1_5_full_weights", "/data/sk-image-segmentation-of-scenes",
        "/data/asianfoodphotographycollection",
    ],
)  # fmt: skip
def test_harmless_words_stay(text: str) -> None:
    assert redacted(text) == text


def test_what_the_environment_calls_secret_is_hidden_wherever_it_stands() -> None:
    environment = {"WANDB_API_KEY": "abcdefgh1234", "HOME": "/home/adalovelace", "HF_TOKEN_PATH": "/home/ada/token",
                   "MY_TOKEN": "short", "HTTP_PROXY": "http://ada:0123456789@proxy:3128"}  # fmt: skip

    secrets = secrets_of(environment)

    assert secrets == ("abcdefgh1234", "0123456789")
    assert without("said abcdefgh1234 aloud", secrets) == "said (hidden) aloud"


def test_plain_data_is_without_secrets_and_otherwise_as_it_was() -> None:
    screen = Screen({"WANDB_API_KEY": "abcdefgh1234"})
    plain = {
        "values": {"loss": 0.5, "step": 3, "said abcdefgh1234": None},
        "hf_token": "short",
        "pin": 1,
        "api_key": 1234,
        "urls": ["s3://u:p@b"],
    }

    shown = screen.plain(plain)

    assert shown == {
        "values": {"loss": 0.5, "step": 3, "said (hidden)": None}, "hf_token": "(hidden)", "pin": 1,
        "api_key": "(hidden)", "urls": ["s3://b"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("abc", "stages.a.config.hf_token", "is named like a secret"),
        ("https://b/a.tar?X-Amz-Signature=0a", "stages.a.config.url", "a signed address"),
        ("abcdefgh1234", "stages.a.config.model", "the environment variable WANDB_API_KEY"),
        ("postgresql://ada@db/mlflow", "tracking.uri", ""),
        ("the abcdefgh12345 of it", "stages.a.config.prompt", ""),  # a short secret may stand in other words
    ],
)
def test_what_should_not_lie_in_a_file_is_said_with_the_reason(text: str, name: str, why: str) -> None:
    told = Screen({"WANDB_API_KEY": "abcdefgh1234"}).why_secret(text, name)

    assert why in told
    assert bool(told) == bool(why)


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "&" + "sign" * 50_000, "://" * 60_000, "eyJ-" * 50_000, "password" * 25_000]
)
def test_text_made_to_be_slow_is_not(text: str) -> None:
    begun = time.process_time()

    redacted(text)

    assert time.process_time() - begun < 5
