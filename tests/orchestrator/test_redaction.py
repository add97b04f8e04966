"""Secrets do not get into what others read, and harmless words stay."""

import time

import pytest

from orchestrator.redaction import redacted, secrets_of, without

SECRET = "s3cr3tS3cr3tS3cr3t"  # noqa: S105 - it is planted


@pytest.mark.parametrize(
    "text",
    [
        f"https://ada:{SECRET}@mlflow.example.org/api",
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
    ],
)  # fmt: skip
def test_harmless_words_stay(text: str) -> None:
    assert redacted(text) == text


def test_what_the_environment_calls_secret_is_hidden_wherever_it_stands() -> None:
    environment = {"WANDB_API_KEY": "abcdefgh1234", "HOME": "/home/adalovelace", "HF_TOKEN_PATH": "/home/ada/token",
                   "MY_TOKEN": "short"}  # fmt: skip

    secrets = secrets_of(environment)

    assert secrets == ("abcdefgh1234",)
    assert without("said abcdefgh1234 aloud", secrets) == "said (hidden) aloud"


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "&" + "sign" * 50_000, "://" * 60_000, "eyJ-" * 50_000, "password" * 25_000]
)
def test_text_made_to_be_slow_is_not(text: str) -> None:
    begun = time.process_time()

    redacted(text)

    assert time.process_time() - begun < 5
