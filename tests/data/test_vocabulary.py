"""Text to ids and back."""

import importlib.util

import numpy as np
import pytest

from mim_jax.data.vocabulary import alphabet_of, open_vocabulary
from mim_jax.errors import InputError

TEXTS = [
    '',
    'plain',
    'Zürich, naïve café',
    '日本語 and 😀🏳️‍🌈',
    'tabs\tand\r\nCRLF\n',
    'e\u0301 is not é',
    '\x00\x7f\u2028\ufffd',
]
needs_tokenizers = pytest.mark.skipif(not importlib.util.find_spec('tokenizers'), reason='tokenizers is not installed')


@pytest.fixture
def bpe(tmp_path):
    """tokenizer.json of byte-level pairs, trained on a little text."""
    import tokenizers as t

    made = t.Tokenizer(t.models.BPE())
    made.pre_tokenizer, made.decoder = t.pre_tokenizers.ByteLevel(add_prefix_space=False), t.decoders.ByteLevel()
    trainer = t.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=t.pre_tokenizers.ByteLevel.alphabet(), special_tokens=['<end>']
    )
    made.train_from_iterator(['the cat and the hat and the mat'] * 9, trainer)
    made.post_processor = t.processors.TemplateProcessing(single='$A <end>', special_tokens=[('<end>', 0)])
    made.enable_truncation(4)
    made.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path


def check(vocabulary, text):
    """A round trip, and what the tokens stand for adds up."""
    ids, lengths = vocabulary.measure(text.encode())
    assert len(ids) == len(lengths) and lengths.sum() == len(text.encode())
    assert len(ids) == 0 or ids.max() < vocabulary.size
    assert vocabulary.decode(ids) == text
    np.testing.assert_array_equal(vocabulary.encode(text), ids)
    assert vocabulary.encode(text.encode()).dtype == np.int32


@pytest.mark.parametrize('text', TEXTS)
def test_bytes(text):
    check(open_vocabulary('bytes'), text)
    assert open_vocabulary('bytes').encode(text).tolist() == list(text.encode())


def test_bytes_that_are_no_text_become_a_replacement():
    vocabulary = open_vocabulary('bytes')
    assert vocabulary.decode(np.array([65, 0xC3, 66, 256, 67])) == 'A\ufffdB\ufffdC'


@pytest.mark.parametrize('text', TEXTS)
def test_characters(text):
    alphabet = alphabet_of(text.encode() for text in TEXTS)
    assert alphabet == ''.join(sorted(set(''.join(TEXTS))))
    vocabulary = open_vocabulary('characters', alphabet)
    check(vocabulary, text)
    assert vocabulary.encode(text).tolist() == [alphabet.index(c) for c in text]


def test_unknown_characters_share_one_id_and_keep_their_bytes():
    vocabulary = open_vocabulary('characters', 'cab')
    ids, lengths = vocabulary.measure('a😀é c'.encode())
    assert (vocabulary.size, vocabulary.unknown) == (4, 3)
    assert ids.tolist() == [0, 3, 3, 3, 2] and lengths.tolist() == [1, 4, 2, 1, 1]
    assert (
        vocabulary.decode(ids) == 'a\ufffd\ufffd\ufffdc' and vocabulary.decode(np.array([1, 4, -1])) == 'b\ufffd\ufffd'
    )


def test_an_alphabet_skips_what_is_not_utf8():
    assert alphabet_of([b'ab', b'\xff', b'bc']) == 'abc'


@needs_tokenizers
@pytest.mark.parametrize('text', [*TEXTS, 'the cat and the hat  \n'])
def test_a_file_of_the_tokenizers_library(bpe, text):
    for path in (bpe, bpe / 'tokenizer.json'):
        check(open_vocabulary(f'hf:{path}'), text)  # neither cut off nor with a special token


@needs_tokenizers
def test_many_documents_are_as_each(bpe):
    vocabulary = open_vocabulary(f'hf:{bpe}')
    documents = [f'the cat {i} é'.encode() for i in range(600)]
    for found, data in zip(vocabulary.measure_all(documents), documents, strict=True):
        for a, b in zip(found, vocabulary.measure(data), strict=True):
            np.testing.assert_array_equal(a, b)


@needs_tokenizers
def test_blanks_that_a_tokenizer_drops_count(tmp_path):
    import tokenizers as t

    made = t.Tokenizer(t.models.WordLevel({'[UNK]': 0, 'été': 1, 'b': 2}, '[UNK]'))
    made.pre_tokenizer = t.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / 'words.json'))
    ids, lengths = open_vocabulary(f'hf:{tmp_path / "words.json"}').measure('  été  b\n'.encode())
    assert ids.tolist() == [1, 2] and lengths.tolist() == [9, 2]
    assert [x.tolist() for x in open_vocabulary(f'hf:{tmp_path / "words.json"}').measure(b' \n')] == [[], []]


def test_wrong_names_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match='data.reader.tokenizer=byte: it has to be bytes, characters or hf:'):
        open_vocabulary('byte')
    with pytest.raises(InputError, match='data.reader.alphabet is empty'):
        open_vocabulary('characters')
    (tmp_path / 'tokenizer.json').write_text('{')
    with pytest.raises(InputError, match='data.reader.tokenizer=hf:.*tokenizer.json'):
        open_vocabulary(f'hf:{tmp_path / "tokenizer.json"}')
