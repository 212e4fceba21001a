#!/usr/bin/env python3
"""Turns a text into tokens for a job with data.format = "tokens". Plain Python, no packages.

    prepare.py train TEXT --vocabulary 4096       trains a tokenizer and writes both files below
    prepare.py encode TEXT                        encodes with the tokenizer that is there
    prepare.py decode TOKENS                      prints the text of a token file

    --tokenizer tokenizer.json   the merges, in the order in which they were learnt
    --out train.tokens           token ids, each a little-endian u16

The tokenizer is a byte-level BPE as GPT-2's (Sennrich et al. 2016, Radford et al. 2019): the text is
cut into pieces (a word with the space before it, a number, a run of marks, white space), the bytes of
a piece are its first tokens, and the pair that is most frequent in the training text is merged again
and again. Ids 0 to 255 are the bytes; each merge adds one; the last id of the vocabulary is
<|endoftext|>, which --documents puts behind every blank-line-separated document. Any text can be
encoded, and decodes to itself.
"""
import argparse
import collections
import heapq
import json
import re
import sys
from array import array

# GPT-2's pattern with the classes that the standard library knows: letters, digits, other marks.
PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
END = "<|endoftext|>"


def pieces(text):
    return (piece.encode() for piece in PIECE.findall(text))


def train(text, vocabulary):
    """The merges, each a pair of ids, in order."""
    counts = collections.Counter(pieces(text))
    words = [list(piece) for piece in counts]
    weights = list(counts.values())
    pairs = collections.Counter()
    where = collections.defaultdict(set)
    for number, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += weights[number]
            where[pair].add(number)
    # The most frequent pair first; of equally frequent ones the lowest ids, so that a text always
    # leads to the same tokenizer. Entries whose count has changed are left behind and skipped.
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < vocabulary - 257 and heap:
        count, pair = heapq.heappop(heap)
        if pairs[pair] != -count or count == 0:
            continue
        new = 256 + len(merges)
        merges.append(pair)
        changed = set()
        for number in where.pop(pair):
            word, weight = words[number], weights[number]
            for old in zip(word, word[1:]):
                pairs[old] -= weight
                changed.add(old)
            words[number] = word = merge(word, pair, new)
            for fresh in zip(word, word[1:]):
                pairs[fresh] += weight
                where[fresh].add(number)
                changed.add(fresh)
        for one in changed:
            if pairs[one] > 0:
                heapq.heappush(heap, (-pairs[one], one))
    return merges


def merge(word, pair, new):
    out, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            out.append(new)
            at += 2
        else:
            out.append(word[at])
            at += 1
    return out


class Tokenizer:
    def __init__(self, merges, vocabulary):
        self.merges = [tuple(pair) for pair in merges]
        self.vocabulary = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.known = {}

    def save(self, path):
        with open(path, "w") as file:
            json.dump({"vocabulary": self.vocabulary, "merges": self.merges}, file)
            file.write("\n")

    @staticmethod
    def load(path):
        with open(path) as file:
            fields = json.load(file)
        return Tokenizer(fields["merges"], fields["vocabulary"])

    def piece(self, piece):
        """The tokens of a piece: merges in the order in which they were learnt."""
        if piece in self.known:
            return self.known[piece]
        word = list(piece)
        while len(word) > 1:
            rank = min(self.ranks.get(pair, len(self.ranks)) for pair in zip(word, word[1:]))
            if rank == len(self.ranks):
                break
            word = merge(word, self.merges[rank], 256 + rank)
        self.known[piece] = word
        return word

    def encode(self, text):
        return [token for piece in pieces(text) for token in self.piece(piece)]

    def decode(self, tokens):
        parts = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            parts.append(parts[left] + parts[right])
        end = self.vocabulary - 1
        known = (END.encode() if token == end else parts[token] for token in tokens)
        return b"".join(known).decode(errors="replace")


def read_text(path):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("act", choices=["train", "encode", "decode"])
    parser.add_argument("source")
    parser.add_argument("--vocabulary", type=int, default=4096, help="257 to 65536")
    parser.add_argument("--tokenizer", default="tokenizer.json")
    parser.add_argument("--out", default="train.tokens")
    parser.add_argument("--documents", action="store_true", help="blank lines part documents")
    options = parser.parse_args()
    if not 257 <= options.vocabulary <= 65536:
        parser.error("--vocabulary must be 257 to 65536: ids are 16 bits, and the bytes need 256")
    if options.act == "decode":
        tokens = array("H")
        with open(options.source, "rb") as file:
            tokens.frombytes(file.read())
        if sys.byteorder == "big":
            tokens.byteswap()
        sys.stdout.write(Tokenizer.load(options.tokenizer).decode(tokens))
        return
    text = read_text(options.source)
    if options.act == "train":
        tokenizer = Tokenizer(train(text, options.vocabulary), options.vocabulary)
        tokenizer.save(options.tokenizer)
    else:
        tokenizer = Tokenizer.load(options.tokenizer)
    tokens = array("H")
    for document in re.split(r"(?<=\n)\n", text) if options.documents else [text]:
        tokens.extend(tokenizer.encode(document))
        if options.documents:
            tokens.append(tokenizer.vocabulary - 1)
    number, most = len(tokens), max(tokens, default=0)
    if sys.byteorder == "big":
        tokens.byteswap()
    with open(options.out, "wb") as file:
        tokens.tofile(file)
    size = len(text.encode())
    print(f"{options.out}: {number} tokens of {size} bytes, {size / max(number, 1):.2f} bytes each, "
          f"the highest {most}; the job needs vocabulary = {tokenizer.vocabulary}")


main()
