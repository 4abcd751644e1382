"""The miniature text world: five small synthetic tasks that mirror the paper's five.

AG News, Yelp, Amazon, Yahoo Answers and DBpedia-14 are too large for a notebook. This package
writes short English documents with the same label names and about the same difficulty from a
seeded grammar. A document holds two to five *cues*. Every cue first draws a cue group given
the class, then a phrase from the group; templates, fillers and names never see the class. So
P(class | text) is known exactly, and with it the best accuracy that any classifier can reach.

Where the ambiguity comes from, per task:

- ag (news wire): a cue is off-topic (a related desk, or news in general) one time in four;
  "court rulings", "sanctions", "transfers", "strikes" belong to two desks or three.
- yelp, amazon (reviews): every remark has a sentiment from -2 to +2, drawn from a discretised
  Gaussian around the stars, so that a 3-star review mixes praise and complaint. The two tasks
  share part of their sentiment words and have their own on food and service, or on the product.
- yahoo (question and answer): nearly half of the cues come from the partner topic (Health and
  Family, Computers and Business, ...) or from talk that fits any topic.
- dbpedia (encyclopaedia): one cue in six is related or general; "tracks", "wings", "scales",
  "branches", "plots" belong to two classes.

As printed by ``python -m benchmarks.text_world`` (best reachable accuracy; naive Bayes
trained on 4000 and tested on 1000 documents, mean of five draws; mean words; vocabulary)::

    task     classes    best naive Bayes  words  vocab
    ag             4   0.921       0.903   25.4    415
    yelp           5   0.602       0.566   21.4    185
    amazon         5   0.589       0.552   20.2    179
    yahoo         10   0.728       0.693   25.4    390
    dbpedia       14   0.979       0.958   25.5    651
    1587 distinct words in all

The world is frozen as ``WORLD_VERSION``. Its constants were tuned by Bayes accuracy and naive
Bayes accuracy alone, never by anything about model merging. Any later change to what is
generated bumps the version, and the report must list its claims before and after.
"""

from .grammar import WORLD_VERSION
from .text import TEXT_TASKS, corpus, generate

__all__ = ["TEXT_TASKS", "WORLD_VERSION", "corpus", "generate"]
