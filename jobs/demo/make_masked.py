"""Writes the sentences of the fill-mask job: 123 made-up requests to an assistant, nearly all with a word hidden.

    python jobs/demo/make_masked.py

In a template ``[a|b]`` chooses a wording. The three without a mask are there to be rejected.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from make_messages import CHOICE

OUTPUT = Path(__file__).with_name("masked.parquet")
SEED, ROWS = 2026, 120
NO_MASK = {
    17: "how much money is in my savings account",
    58: "Set a timer for ten minutes.",
    101: "what is [ MASK ]",
}

TEMPLATES = """
how much [MASK] do i have in my [checking|savings] account
please [MASK] fifty dollars from [checking|savings] to my [MASK] account
what is the [MASK] rate on my [savings account|credit card]
i want to [MASK] my [electric|water|phone] bill
when is my [electric|gas|cable] [MASK] due
my [credit|debit] [MASK] was stolen [yesterday|on the train], please block it
i need to report a [MASK] credit card
can you raise my credit [MASK] [to two thousand dollars|please]
what is my credit [MASK] [right now|at the moment]
how do i [MASK] for a new [MASK] card
why was my card [MASK] at the [store|restaurant|gas station]
how long until my new [MASK] arrives in the mail
[order|send me] more [MASK] for my checking account
book a [MASK] from boston to [MASK] for [monday|next week]
i need a [MASK] room in [chicago|madrid] for three nights
what [MASK] does my flight to [lisbon|tokyo] leave
is my flight to [austin|oslo] on [MASK]
[where is|i cannot find] my [MASK] [luggage|suitcase]
do i need a [MASK] to travel to [china|brazil|india]
what is the exchange [MASK] between [dollars and euros|yen and pounds]
how do you say [MASK] in [spanish|french|italian]
which [MASK] is it in [tokyo|london], i mean the time [MASK]
what vaccines do i need to [MASK] to [kenya|peru]
rent a [MASK] for me in [seattle|miami] from friday to sunday
what is the [MASK] like in [paris|boston] today
will it [MASK] tomorrow in [london|portland]
set an [MASK] for six in the [MASK]
wake me [MASK] at seven tomorrow
set a [MASK] for [ten|five] minutes
remind me to [MASK] my [mother|doctor] this afternoon
add [milk|eggs|bread] to my [MASK] list
what is on my [MASK] [MASK]
is there a meeting on my [MASK] for [monday|friday]
schedule a [MASK] with my [boss|team] at three
[play|find] some [MASK] for the party
what is the [MASK] of this song
turn [MASK] the [MASK] in the [kitchen|bedroom]
turn the [MASK] down a little
where did i leave my [MASK], can you call it
call [mom|the office] on my [MASK]
[send|write] a [MASK] message to my brother
what is the [MASK] to the [airport|train station]
how is the [MASK] on the way to [work|the stadium]
how many [MASK] are in a [cup|gallon|pound]
how many calories are in a slice of [MASK]
find me a [MASK] for [lasagna|apple pie|chicken soup]
how long should i [MASK] the [chicken|rice|potatoes]
can i substitute butter for [MASK] in this recipe
make a [MASK] for [MASK] at [seven|eight] tonight
cancel my dinner [MASK] for [friday|tonight]
how are the [MASK] for that [thai|italian] restaurant
what is the [MASK] pressure in my tires
when should i get my [MASK] changed
my car needs a [MASK], it makes a strange noise
how many miles [MASK] gallon does my car get
how do i [MASK] start a car
how much [MASK] do i have left in the tank
how many vacation [MASK] do i have left
i would like to take next [MASK] off [for vacation|because i am moving]
when is my next [MASK], i mean the day i get [MASK]
when do i get my w2 [MASK] for my taxes
how do i roll over my [MASK] to a new job
what is the [MASK] of the word [gracious|tedious]
how do you [MASK] the word [necessary|rhythm]
what is the square [MASK] of [nine|sixty four]
flip a [MASK], heads i win
roll a [MASK] with six sides
tell me a [MASK] that makes me laugh
what is your [MASK], i am called [sam|lee]
are you a [MASK] or a real person
what [MASK] can i ask you
[thanks|thank you] so [MASK] for the help
speak a little [MASK], please
change your [MASK] to a british accent
from now on speak to me in [MASK]
please [MASK] that again, i did not hear you
I have lost my [MASK] and cannot pay for [anything|dinner].
Could you [MASK] me the number of the [bank|hotel]?
Is there [MASK] on my [MasterCard|gold card] that I did not [MASK]?
Please move [MASK] hundred dollars to [my wife's|our joint] [MASK].
what's the [MASK] way to get to the [museum|bus stop]?
"""


def sentences() -> list[str]:
    """All the sentences, each once, in random order."""
    dice = random.Random(SEED)
    templates = TEMPLATES.strip().split("\n")
    found: dict[str, None] = {}
    while len(found) < ROWS:
        for text in dice.sample(templates, len(templates)):
            while choice := CHOICE.search(text):
                text = (
                    text[: choice.start()]
                    + dice.choice(choice[1].split("|"))
                    + text[choice.end() :]
                )
            found.setdefault(text)
    out = dice.sample(list(found)[:ROWS], ROWS)
    for at, text in NO_MASK.items():
        out.insert(at, text)
    return out


if __name__ == "__main__":
    pq.write_table(pa.table({"text": sentences()}), OUTPUT, compression="zstd")
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")
