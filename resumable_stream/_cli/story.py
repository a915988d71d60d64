"""
The text that the demo streams: an essay, split into exactly 2,000 tokens, the same on every machine.

They resemble a language model's tokens: a word keeps the space before it, punctuation is separate, long words are split in two.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

__all__ = ["TOKENS", "digest", "tokens"]

TOKENS: Final = 2000

# The full story: W. H. Russell, "The Atlantic Telegraph" (1865), and H. M. Field, "History of the Atlantic Telegraph" (1866).
_ESSAY: Final = """\
THE CABLE THAT WAS CONTINUED

In the summer of 1865 the largest ship in the world left the coast of Ireland with a rope in her belly. The rope was
made of copper, gutta-percha, hemp and iron, it was longer than any ocean is wide, and it was meant to carry a
current so faint that a man had to watch a spot of light to know whether it had arrived. The ship was the Great
Eastern. She had ruined everybody who had ever owned her, because no harbour was built for her and no trade could
fill her, and now, at last, somebody had found a cargo that only she could hold.

It was not the first attempt. In 1857 a cable had parted and gone to the bottom. In 1858 two ships had met in the
middle of the sea, joined their halves, and sailed apart; and for a few weeks, to the sound of bells and cannon, two
continents could talk. The Queen sent the President a greeting of ninety-eight words. It took sixteen hours. Then
the signals grew weaker, an impatient man raised the voltage to wake them, and the line fell silent for good. People
who had lit bonfires began to say that it had never worked at all, that the greeting had been a trick to sell
shares. That is the first lesson of the story, and the oldest: when a message stops in the middle, nobody remembers
how much of it was true.

So the men of 1865 wrote things down. Every mile that ran over the stern was counted by a wheel and entered in a
book, with the hour, the depth, the strain on the rope and the place of the ship by sun and by stars. On shore, in a
hut at the edge of a field, someone sat in the dark before a small mirror that hung from a thread of silk, and
watched its light move on a scale. As long as the light moved when it should, the rope was whole. Each hour the ship
told the shore how far she had come, and the shore told the ship that it had heard. Neither trusted the silence of
the other. A quiet line may be a healthy line with nothing to say, or it may be a broken one, and the only way to
know is to agree beforehand how long a silence may last.

Three times on that voyage the light went wild. Three times they stopped, turned the ship, and hauled miles of wet
rope back over the bow, until they found a splinter of wire, no longer than a needle, that had been driven through
the skin and let the sea in. They cut the piece out, joined the ends, tested the joint, and went on. Nobody
suggested starting again from Ireland. The miles behind them were good; they had been tested, they were written in
the book, and they had been paid for.

On the second of August, with some twelve hundred miles laid and about six hundred to go, they were hauling once
more. The ship swung in the wind. The rope rubbed against iron, a worn place came over the wheel, and before anyone
could stop the engines the end slipped away. It made hardly a splash. A man who stood beside it wrote that there was
nothing to be heard, only the faces of the others to be seen. Two and a half miles below them lay the end of the
finest piece of work of the age, and all that they had left of it was a line in a book: a latitude, a longitude, a
count of miles.

It turned out that this line was worth more than the ship.

They fished for it. They lowered an iron hook with five arms on five miles of wire, let it sink for two hours, and
drifted across the place that the book named. And the hook took hold. Think of that for a moment: in the middle of
the ocean, without a mark on the water, they steamed over a rope no thicker than a thumb, lying in a darkness that
no one had ever seen, and they found it, because they knew exactly where they had been when they lost it. They
raised it most of the way. Then the wire broke. They tried again, and again, until there was no wire left to break,
and then they set a buoy, wrote down where the buoy was, and went home.

One would expect the story to end there, with a clean sheet: a new company, new money, a new rope from shore to
shore, and the old one left to the fishes. They did make a new rope. In July of 1866 the great ship set out once
more, and this time nothing broke. She came into a small bay in Newfoundland that bore the name of Heart's Content,
the end was carried up the beach, and the two continents were talking again. It was a triumph, there were bells, and
any sensible person would have stopped.

But there was the book. It said that twelve hundred miles of perfectly good cable were lying on the bottom, tested
and paid for, and that they ended at a place where anyone could go who could take the height of the sun. So within
two weeks the ship turned round, went back to that empty piece of sea, and let down her hooks.

It took most of August. They caught the rope and lost it; they caught it and raised it until it hung in sight,
gleaming with white ooze, and saw it slide back. They learned to lift it in more than one place, so that no single
point had to bear the weight of the whole. They made some thirty attempts, and between them they waited for the
weather, because trying at once, and with all your strength, against a sea that is not ready, only breaks the hook.
They waited a little, tried, waited longer, tried again. There was nothing heroic in it. It was patience with a
rule.

Early on a September morning the end came over the bow. Nobody cheered. It was carried along the deck into the
testing room, and the men who fitted in stood round the table while the ends were scraped clean. For a year a clerk
in Ireland had been sitting by the other end. There was no reason to expect anything, for the thing was dead, it
ended in the sea; but it was somebody's duty to look at the light, and so somebody looked. Now and then it drifted,
as such things do, moved by the currents of the earth itself. Then, that morning, it began to move in a way that was
not drifting. It moved like a hand. It spelled a call, and then a question, and the clerk, who had waited a year to
be asked it, answered.

On the ship they saw the answer, and then they cheered.

They did not say: we have a good deal of new rope, let us begin at the beach. They did not lay a single mile twice.
They made a splice, which is a plain thing, a hand's length of wire twisted, soldered and bound; they tested it;
they wrote in the book the place where the old part ended and the new one began; and they let it go over the side
and paid out the remainder, the six hundred miles that were missing and no others, until they saw the same small bay
for the second time in six weeks. In one summer they had made two cables, and the second was the one that had been
given up for lost.

If you looked at that rope today you could not tell where the voyage had been interrupted. A message has no memory
of the splice that it runs through. It goes in at one end and comes out at the other, whole and in order, and
whoever reads it has no cause to think of the ship, the hook, the buoy, or the year of waiting between one mile and
the next. That is what it means to continue something. It is not to do it again, faster. It is not to pretend that
the half you have is all there was. It is to know where you stopped, to be able to prove it, to go back to that very
place, and to ask for what comes after.

All that it takes is small. You keep count of what has arrived. You write the count down in a safe place before you
need it. You agree on what silence means. When the line is lost you wait a little, and then a little longer, and you
do not lose heart at the tenth attempt if the eleventh costs nothing. When it comes back you compare what you hear
with what you had; if they overlap you drop the part you know, and if there is a hole you say so, aloud, rather than
sew the edges together and hope. And when you have reached the far shore you check the whole of it, from the first
word to the last, against the book.

The men on that deck would have understood every word of this. They only had a longer rope.
"""


def tokens() -> list[str]:
    """The essay's tokens; joined, they are the essay, one paragraph per line."""
    essay = re.sub(r"(?<!\n)\n(?!\n)", " ", _ESSAY.strip())
    pieces = re.findall(r"\s*(?:[\w'-]+|[^\w\s])", essay)
    missing = TOKENS - len(pieces)
    # The longest words are split in two, starting with the first.
    longest = sorted(range(len(pieces)), key=lambda index: -len(pieces[index].strip()))[:missing]
    for index in sorted(longest, reverse=True):
        word = pieces[index]
        half = len(word) - len(word.strip()) // 2
        pieces[index : index + 1] = [word[:half], word[half:]]
    return pieces


def digest(text: str) -> str:
    """SHA-256 of the text, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()
