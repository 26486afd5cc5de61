"""Text and JSON are read whatever program wrote them, with and without a mark of the byte order."""

import codecs
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from agents.reward_modelling import Pair, read_pairs
from sepo_env import tasks, textfile
from sepo_env.denoisers import load_denoiser
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.loading.hugging_face import load_tokenizer, read_config
from sepo_env.tasks.codec import WordPieceCodec
from sepo_env.tasks.hf_codec import load_codec
from sepo_env.tasks.motifs import read_meme
from sepo_env.tasks.prompt_file import read_prompts
from sepo_env.textfile import half_letter, parse_json, read_json, read_json_object, read_text, text_lines
from tests import hf_models

ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8 with a mark": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16 of other machines": "utf-16-be",
    "utf-32": "utf-32",
}


def encode(text: str, encoding: str) -> bytes:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    return mark + text.encode(encoding)


@pytest.fixture(params=ENCODINGS.values(), ids=ENCODINGS.keys())
def encoding(request: pytest.FixtureRequest) -> str:
    return request.param


def rewrite(path: Path, encoding: str) -> Path:
    """The same text in another encoding, with the line ends of Windows."""
    path.write_bytes(encode(path.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding))
    return path


# Every reader


def test_text_and_json(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(encode('{"ä": [1, "\u2028"]}', encoding))
    assert read_text(path) == '{"ä": [1, "\u2028"]}'
    assert read_json(path) == read_json_object(str(path)) == {"ä": [1, "\u2028"]}
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_json(path) == {"ä": [1, "\u2028"]}


def test_lines(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    # Only \n, \r\n and \r end a line; JSON may hold what other readers call the end of one.
    path.write_bytes(encode('a\u2028\x85\x0bb\r\n\n \t\r"c"', encoding))
    assert list(text_lines(path)) == [(1, "a\u2028\x85\x0bb"), (4, '"c"')]


def test_prompts_and_pairs(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "in the beginning"}\n{"prompt": "and he said"}\n')
    rewrite(tmp_path / "prompts.jsonl", encoding)
    assert read_prompts(tmp_path / "prompts.jsonl") == [(1, "in the beginning"), (2, "and he said")]
    assert len(tasks.make("text_rlhf", prompts=tmp_path / "prompts.jsonl").prompt_set.tokens) == 2
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    rewrite(tmp_path / "pairs.jsonl", encoding)
    assert read_pairs(tmp_path / "pairs.jsonl") == [Pair("a", "b")]


def test_codecs_and_motifs(encoding: str, tmp_path: Path) -> None:
    WordPieceCodec([" ", "a", "ä"]).save(tmp_path / "codec.json")
    assert WordPieceCodec.load(rewrite(tmp_path / "codec.json", encoding)).pieces() == [" ", "a", "ä"]
    (tmp_path / "a.meme").write_text("MEME version 4\nMOTIF x\nletter-probability matrix: w= 1\n0.1 0.2 0.3 0.4\n")
    assert read_meme(rewrite(tmp_path / "a.meme", encoding)).names == ("x",)


@pytest.mark.parametrize("name", ["mdlm", "sedd/absorb"])
def test_the_configuration_of_a_model(name: str, encoding: str, tmp_path: Path, project_root: Path) -> None:
    folder = shutil.copytree(project_root / "tests" / "fixtures" / name, tmp_path / "model")
    expected = load_denoiser(folder).state_dict()
    rewrite(folder / "config.json", encoding)
    assert read_config(folder) == json.loads(encode((folder / "config.json").read_bytes().decode(encoding), "utf-8"))
    found = load_denoiser(folder).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "no text file"),
        (b"\xe4", "no text file"),
        (b"\x1f\x8b and no more", "no text file"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "no text file"),
        (b"", "it is no JSON"),
        (b"{", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON .containers nested too deep"),
        (b'{"a":' * 100_000, "it is no JSON .containers nested too deep"),
        (b"9" * 5000, "it is no JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_what_is_no_object_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.json: {message}"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize("read", [read_text, read_json, lambda path: list(text_lines(path)), read_pairs, read_meme])
def test_what_is_no_file_is_not_read(read, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, message in (("pipe", "a device"), ("device", "a device"), (".", "a folder"), ("absent", "no such file")):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="path is 3"):
        read(3)


def test_a_text_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b" " * (textfile.LARGEST_JSON - 2) + b"{}")
    assert read_json(path) == {}
    path.write_bytes(b" " * (textfile.LARGEST_JSON - 1) + b"{}")
    with pytest.raises(CheckpointError, match="a text of more than 67,108,864 bytes"):
        read_json(path)
    os.truncate(path, textfile.LARGEST_TEXT + 1)  # a hole, which takes no room on the disk
    with pytest.raises(CheckpointError, match="a text of more than 67,108,864 bytes"):
        read_json(path)


def test_a_compressed_text_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, length = tmp_path / "a.gz", 10_000_000
    path.write_bytes(gzip.compress(b"\n" * length))
    free = length - textfile.LARGEST_GROWTH * path.stat().st_size
    assert 0 < free < textfile.FREE_GROWTH
    monkeypatch.setattr(textfile, "FREE_GROWTH", free)
    assert read_text(path) == "\n" * length
    monkeypatch.setattr(textfile, "FREE_GROWTH", free - 1)
    with pytest.raises(CheckpointError, match="a text of more than 9,999,999 bytes"):
        read_text(path)


def test_small_helpers() -> None:
    assert parse_json(" 1 ") == 1
    assert half_letter("ä\U0001f600") is None
    assert half_letter("a\udc00") == "\udc00"


def test_a_tokenizer_and_a_masked_language_model(encoding: str, tmp_path: Path) -> None:
    folder = hf_models.save_masked_lm(tmp_path / "bert")
    texts = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    assert [path.name for path in texts] == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    expected = load_denoiser(folder)
    before = {path.name: rewrite(path, encoding).read_bytes() for path in texts}
    found = load_denoiser(folder)
    tokens = expected.codec.encode(["a ? b"], 3, "?")
    assert torch.equal(found.codec.encode(["a ? b"], 3, "?"), tokens)
    torch.testing.assert_close(found(tokens, torch.ones(1)), expected(tokens, torch.ones(1)))
    assert {path.name: path.read_bytes() for path in texts} == before
    assert load_codec(folder, 9).pieces() == expected.codec.tokenizer.convert_ids_to_tokens(range(9))


def test_a_list_of_words(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(hf_models.SPECIALS + hf_models.LETTERS))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    rewrite(tmp_path / "vocab.txt", encoding)
    assert load_tokenizer(tmp_path).convert_tokens_to_ids(["[PAD]", "d"]) == [0, 8]
