"""Grammar of the miniature text world, as plain data.

How it is read (by :mod:`mergelib.tasks.miniature.text`):

* ``LABELS[task]`` are the class names, ``SENTENCES[task]`` the sentence templates by
  position: a document takes one template from every position, in order ("" is no sentence).
* A ``{slot}`` in a template is filled either from ``FILLERS[task]`` (neutral words, drawn
  uniformly, the same for every class) or from ``CUES[task]`` (words that carry the class).
* ``CUES[task][group][slot]`` lists the phrases of one cue group for one slot. For every cue
  slot the generator draws a *group* given the class with the odds of ``group_odds``, then a
  phrase uniformly from that group. No phrase occurs twice in one document.
* A phrase may stand in several groups ("viruses" is Health and Computers): it is then
  honestly ambiguous, and the posterior adds up both readings. It may stand in one slot only.
* Phrase lists are comma-separated strings. Text starts in lower case; the generator
  capitalises sentence starts and turns "a" into "an" where needed.
* No cue phrase may begin with a word that a template or filler of its task uses; this keeps
  the cues of a finished text unambiguous (checked by the tests).

Freezing rule. The constants below were tuned by Bayes accuracy and by the accuracy of naive
Bayes alone, never by anything about model merging. They are frozen as ``WORLD_VERSION``: any
change to what is generated must raise it, and the report must list its claims before and
after the change.
"""

from __future__ import annotations

import math

WORLD_VERSION = 1

STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")

LABELS: dict[str, tuple[str, ...]] = {
    "ag": ("World", "Sports", "Business", "Sci/Tech"),
    "yelp": STARS,
    "amazon": STARS,
    "yahoo": (
        "Society & Culture",
        "Science & Mathematics",
        "Health",
        "Education & Reference",
        "Computers & Internet",
        "Sports",
        "Business & Finance",
        "Entertainment & Music",
        "Family & Relationships",
        "Politics & Government",
    ),
    "dbpedia": (
        "Company",
        "Educational Institution",
        "Artist",
        "Athlete",
        "Office Holder",
        "Mean of Transportation",
        "Building",
        "Natural Place",
        "Village",
        "Animal",
        "Plant",
        "Album",
        "Film",
        "Written Work",
    ),
}

# --- How a class chooses its cue groups -------------------------------------------------

# Topic tasks: (own topic, related topics together, general cues that any topic may use).
TOPIC_ODDS: dict[str, tuple[float, float, float]] = {
    "ag": (0.74, 0.16, 0.10),
    "yahoo": (0.57, 0.25, 0.18),
    "dbpedia": (0.84, 0.08, 0.08),
}

# The related topics of each topic; they share the middle entry above equally.
RELATED: dict[str, dict[str, tuple[str, ...]]] = {
    "ag": {
        "World": ("Business", "Sports"),
        "Sports": ("World", "Business"),
        "Business": ("Sci/Tech", "World"),
        "Sci/Tech": ("Business", "World"),
    },
    "yahoo": {
        "Society & Culture": ("Politics & Government",),
        "Science & Mathematics": ("Education & Reference",),
        "Health": ("Family & Relationships",),
        "Education & Reference": ("Science & Mathematics",),
        "Computers & Internet": ("Business & Finance",),
        "Sports": ("Entertainment & Music",),
        "Business & Finance": ("Computers & Internet",),
        "Entertainment & Music": ("Sports",),
        "Family & Relationships": ("Health",),
        "Politics & Government": ("Society & Culture",),
    },
    "dbpedia": {
        "Company": ("Mean of Transportation", "Building"),
        "Educational Institution": ("Building", "Office Holder"),
        "Artist": ("Album", "Film"),
        "Athlete": ("Office Holder", "Educational Institution"),
        "Office Holder": ("Educational Institution", "Written Work"),
        "Mean of Transportation": ("Company", "Building"),
        "Building": ("Village", "Educational Institution"),
        "Natural Place": ("Village", "Animal"),
        "Village": ("Natural Place", "Building"),
        "Animal": ("Plant", "Natural Place"),
        "Plant": ("Animal", "Natural Place"),
        "Album": ("Artist", "Film"),
        "Film": ("Written Work", "Artist"),
        "Written Work": ("Film", "Artist"),
    },
}

# Star tasks: spread, in stars, of the sentiment of a single remark around the rating.
STAR_SPREAD: dict[str, float] = {"yelp": 1.05, "amazon": 1.12}

# A phrase at place r of its list (from 0) is used in proportion to 1 / (r + COMMON_OFFSET).
COMMON_OFFSET = 0.5

LEVELS = ("-2", "-1", "0", "+1", "+2")


def group_odds(task: str, label: int) -> dict[str, float]:
    """Return P(cue group | class) of one class."""
    if task in STAR_SPREAD:
        spread = STAR_SPREAD[task]
        weights = [math.exp(-((level - label) ** 2) / (2 * spread**2)) for level in range(5)]
        # Rounded, so that the last bits of a platform's exp() cannot change the world.
        return {
            name: round(weight / sum(weights), 4)
            for name, weight in zip(LEVELS, weights, strict=True)
        }
    name = LABELS[task][label]
    own, related, general = TOPIC_ODDS[task]
    neighbours = RELATED[task][name]
    odds = {name: own, "general": general}
    for other in neighbours:
        odds[other] = related / len(neighbours)
    return odds


def phrase_odds(count: int) -> list[float]:
    """Return P(phrase | group) along a group's list: earlier phrases are commoner."""
    weights = [1 / (rank + COMMON_OFFSET) for rank in range(count)]
    return [weight / sum(weights) for weight in weights]


# --- Sentence templates -----------------------------------------------------------------

SENTENCES: dict[str, tuple[tuple[str, ...], ...]] = {
    # News wire.
    "ag": (
        (
            "{city} - {who} gave a {tone} welcome to {what} on {day}.",
            "{city} - {who} raised {fresh} doubts about {what} on {day}.",
            "{city} - {what} topped the agenda on {day} as {who} gathered.",
            "{who} in {city} spent {day} weighing {what}.",
            "word of {what} took {who} by surprise in {city} on {day}.",
            "{who} near {city} spoke about {what} on {day}.",
            "{city} - {what} drew a {tone} response from {who} on {day}.",
        ),
        (
            "{source} linked the {change} to {what}.",
            "much now depends on {what}, {source} said.",
            "{source} also mentioned {what}.",
            "it was the first {change} involving {what} in {span}.",
            "the {change} came after {what}, said {source}.",
        ),
        (
            "no {detail} was given.",
            "a fuller {detail} is due {soon}.",
            "the {detail} may come {soon}.",
            "{source} promised a {detail} {soon}.",
            "little was said about {what}.",
            "the {detail} left out {what}.",
        ),
    ),
    # Restaurant review.
    "yelp": (
        (
            "we stopped at {place} {when}, and the {dish} was {food}.",
            "I ordered the {dish} at {place}, and it was {food}.",
            "I stopped at {place} with my {friend}, and the {dish} was {food}.",
            "{when} we ordered the {dish} at {place}, and it was {food}.",
        ),
        (
            "the {person} was {staff}, as my {friend} said.",
            "the {spot} was {adj}, as my {friend} said.",
            "the {spot} was {adj} and the {person} {staff}.",
        ),
        (
            "",
            "overall, {verdict}.",
            "overall, {verdict}!",
            "we paid {paid}.",
        ),
    ),
    # Product review.
    "amazon": (
        (
            "I bought this {thing} {reason}, and the {part} is {made}.",
            "this {thing} arrived {when}, and the {part} is {made}.",
            "my {owner} bought this {thing} {when}, and the {part} is {made}.",
            "I bought this {thing} {when}, and the {part} is {made}.",
        ),
        (
            "the {aspect} was {adj}, and it {works}.",
            "in our {room} it {works}.",
            "the {aspect} was {adj}, as my {owner} said.",
        ),
        (
            "",
            "overall, {verdict}.",
            "overall, {verdict}!",
            "overall, it was {adj}.",
        ),
    ),
    # Question and answer.
    "yahoo": (
        (
            "can anyone {explain} {what} to me before {time}?",
            "is it {usual} to ask a {person} about {what}?",
            "can anyone tell me about {what} and {doing} before {time}?",
            "is it {usual} to ask about {what} and {doing}?",
        ),
        (
            "I {began} {doing} {ago}, mainly because of {what}.",
            "my {person} says it comes down to {what}.",
            "I {began} {doing} with my {person} {ago}.",
            "my {person} {began} {doing} {ago}.",
        ),
        (
            "answer - {advise} and read about {what}.",
            "answer - it depends on {what}, so {advise}.",
            "answer - {advise} and ask a {person}.",
        ),
    ),
    # Encyclopaedia entry.
    "dbpedia": (
        (
            "{name} is a {kind} listed under {region}.",
            "{name}, also spelled {name}, is a {kind} in {region}.",
            "in {region}, {name} is the name of a {kind}.",
            "{name} is a {renown} {kind} linked to {region}.",
            "the name {name} refers to a {kind} in {region}.",
        ),
        (
            "{source} mention {known} and {known}.",
            "{source} speak of {known}, and also of {known}.",
            "the entry covers {known} as well as {known}.",
            "{known} and {known} are described in {source}.",
        ),
        (
            "the name has been in use since the {era}.",
            "a {renown} mention dates from the {era}.",
            "there is also a note on {known}.",
            "readers also look for {known}.",
            "the spelling was settled in the {era}.",
        ),
    ),
}

# --- Neutral fillers --------------------------------------------------------------------

FILLERS: dict[str, dict[str, str]] = {
    "ag": {
        "city": (
            "Orthaven, Marlowe, Kestrel, Dunmere, Alderport, Velograd, Santora, Highmoor, "
            "Brackwater, Tellis, Novarel, Eastholm, Quillon, Redbourne, Sarvik, Tamsin, "
            "Wexley, Calderfall, Ostermere, Pinemarsh"
        ),
        "day": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
        "tone": "cautious, warm, cool, muted, lively, guarded, sober, hopeful, polite, gloomy",
        "fresh": "fresh, serious, new, familiar, quiet, loud, further, renewed",
        "span": "days, a week, two weeks, a month, several months, half a year, a year",
        "source": (
            "a spokesman, a spokeswoman, one witness, a close aide, a local paper, one visitor, "
            "people at the scene, a written statement, two sources, a person present, "
            "an early bulletin, a senior figure"
        ),
        "change": "move, shift, turn, step, decision, reversal, announcement, development",
        "detail": "timetable, explanation, reply, summary, account, answer, update",
        "soon": (
            "soon, within days, next week, later today, tomorrow, before the weekend, "
            "this month, in the coming days"
        ),
    },
    "yelp": {
        "place": "Rosario, Verano, Lanterna, Juniper, Saffron, Copperpot",
        "when": "yesterday, on Monday, on Tuesday, on Friday, on Sunday",
        "dish": ("soup, curry, pasta, steak, salad, burger, pizza, omelette, salmon, pie"),
        "friend": "wife, husband, sister, brother, mother, father",
        "person": "waiter, waitress, bartender, manager, host, hostess",
        "spot": "room, terrace, music, lighting, view, menu, parking",
        "paid": "separately, together, quickly",
    },
    "amazon": {
        "thing": "lamp, kettle, toaster, blender, drill, printer, camera, heater",
        "owner": "wife, sister, brother, father",
        "when": "yesterday, on Monday, on Tuesday, on Friday, on Sunday",
        "part": "handle, lid, cable, switch, frame, cover",
        "aspect": "packaging, manual, design, size, price",
        "room": "kitchen, garage, office, bedroom",
        "reason": ("for travel, for work, for camping, for college"),
    },
    "yahoo": {
        "explain": "explain, describe, summarise, clarify, outline",
        "time": "tomorrow, tonight, Monday, Friday, noon, Sunday",
        "usual": "normal, strange, wise, rude, common, silly, sensible, odd, fair",
        "person": "friend, neighbour, colleague, roommate, cousin, aunt",
        "began": "began, started, tried, stopped, resumed, considered",
        "ago": "yesterday, last week, last month, last year, last summer",
        "advise": "be patient, be honest, be careful, be brave, be calm, be sensible",
    },
    "dbpedia": {
        "name": (
            "Velmora, Tarnhollis, Ashdell, Corvanna, Brenlow, Istrella, Marwick Dane, Oldrun, "
            "Pellamy, Quenby, Rostavel, Selwyn Arden, Thessaby, Umbrel, Vantry, Wexcombe, Yarrowin, "
            "Zelkirk, Adamar, Bellonde, Cresswin, Dorvale, Elsinby, Farrowden, Galdemar, Hestonby, "
            "Ilverness, Jorvane, Keldric, Lorimond"
        ),
        "region": (
            "Norvale, Estmark, Calandria, Upper Tresk, Sorrenia, Westmoor, Halvania, Drummony, "
            "Port Ferrin, the Isle of Orm, Belcastra, Old Varnia, Tirolenza, Kovaria, Mirrenland, "
            "Southern Ashby, Palomere, Gransk"
        ),
        "renown": "notable, minor, celebrated, little-known, popular, distinguished, obscure, typical",
        "source": (
            "reference books, early surveys, local guides, printed catalogues, recent studies, "
            "public registers, regional newspapers, several handbooks, older indexes"
        ),
        "era": (
            "late eighteenth century, early nineteenth century, nineteenth century, "
            "late nineteenth century, early twentieth century, interwar years, postwar years, "
            "sixties, seventies, eighties, nineties, past decade"
        ),
    },
}

# --- Cues -------------------------------------------------------------------------------

# Sentiment words that the two star tasks share.
_SHARED_ADJ = {
    "-2": "awful, dreadful, terrible, horrible, hideous",
    "-1": "poor, disappointing, weak, lacking, underwhelming",
    "0": "average, okay, acceptable, ordinary, decent",
    "+1": "good, nice, pleasant, decent, appealing",
    "+2": "superb, excellent, outstanding, perfect, brilliant",
}

_SHARED_VERDICT = {
    "-2": "never again, best avoided",
    "-1": "unconvincing, hardly worthwhile",
    "0": "nothing special, no strong opinion",
    "+1": "quite satisfied, worth recommending",
    "+2": "truly exceptional, absolutely marvellous",
}


def _stars(own: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Add the shared sentiment words to a star task's own words."""
    return {
        level: {
            **own[level],
            "adj": f"{_SHARED_ADJ[level]}, {own[level]['adj']}",
            "verdict": f"{_SHARED_VERDICT[level]}, {own[level]['verdict']}",
        }
        for level in LEVELS
    }


CUES: dict[str, dict[str, dict[str, str]]] = {
    # who: people, plural. what: plural or mass nouns without an article.
    "ag": {
        "World": {
            "who": (
                "ministers, diplomats, rebels, peacekeepers, refugees, protesters, envoys, "
                "lawmakers, generals, aid workers"
            ),
            "what": (
                "ceasefire talks, border clashes, election results, sanctions, hostage releases, "
                "peace proposals, war crimes trials, troop withdrawals, earthquake relief, "
                "parliament debates, asylum claims, coalition politics, martial law, prison riots, "
                "court rulings, roadside bombings, embassy closures, nuclear inspections, "
                "human rights, famine warnings, flood damage, street protests, treaty negotiations, "
                "foreign aid, satellite launches, strikes"
            ),
        },
        "Sports": {
            "who": (
                "strikers, goalkeepers, coaches, sprinters, referees, champions, defenders, "
                "swimmers, fans, cyclists"
            ),
            "what": (
                "penalty shootouts, playoff berths, injury setbacks, transfers, league titles, "
                "relay medals, overtime goals, cup finals, home runs, world records, drug bans, "
                "training camps, wicket collapses, tennis qualifiers, golf rounds, tournament draws, "
                "team selection, stadium crowds, locker room tension, late substitutions, "
                "boxing bouts, halftime leads, race tactics, grand slam hopes, court rulings, strikes"
            ),
        },
        "Business": {
            "who": (
                "investors, shareholders, analysts, bankers, executives, retailers, brokers, "
                "economists, regulators, exporters"
            ),
            "what": (
                "quarterly profits, interest rates, oil prices, share offerings, merger bids, "
                "bankruptcy filings, consumer spending, job cuts, stock markets, trade deficits, "
                "dividend payments, wage demands, factory orders, currency swings, inflation data, "
                "takeover rumours, pension funds, airline losses, mortgage lending, budget forecasts, "
                "credit ratings, steel tariffs, holiday sales, insurance costs, transfers, sanctions, "
                "chip orders, strikes"
            ),
        },
        "Sci/Tech": {
            "who": (
                "scientists, engineers, astronomers, programmers, biologists, hackers, physicists, "
                "inventors, gamers, geneticists"
            ),
            "what": (
                "software patches, satellite launches, computer viruses, wireless networks, "
                "stem cells, space probes, search engines, fossil discoveries, browser flaws, "
                "video games, chip orders, climate models, spam filters, telescope images, "
                "open source code, mobile phones, gene maps, internet telephony, lunar missions, "
                "robot prototypes, online piracy, laser experiments, data storage, web portals, "
                "encryption keys, fusion reactors"
            ),
        },
        "general": {
            "who": "officials, experts, critics, leaders, supporters, insiders",
            "what": (
                "delays, outside pressure, public interest, rule changes, mixed signals, "
                "long-term plans, rising expectations, missed deadlines, private meetings, "
                "leaked documents, unexpected results, safety concerns"
            ),
        },
    },
    # food / staff / adj: what stands after "was". verdict: a remark that stands alone.
    "yelp": _stars(
        {
            "-2": {
                "food": "inedible, rotten, disgusting, revolting, mouldy",
                "staff": "hostile, insulting, abusive, rude, drunk",
                "adj": "filthy, unbearable",
                "verdict": "worst meal ever, utter misery",
            },
            "-1": {
                "food": "bland, greasy, overcooked, lukewarm, chewy",
                "staff": "slow, careless, inattentive, grumpy, impatient",
                "adj": "cramped, overpriced, gloomy",
                "verdict": "rather a letdown, no second visit",
            },
            "0": {
                "food": "edible, filling, plain, simple, mild",
                "staff": "businesslike, neutral, competent, quiet, hurried",
                "adj": "functional, basic, unpretentious",
                "verdict": "fine once, depends on the day",
            },
            "+1": {
                "food": "tasty, flavourful, savoury, fresh, simple",
                "staff": "friendly, polite, helpful, welcoming, quiet",
                "adj": "cosy, inviting, relaxing",
                "verdict": "worth another visit, pretty satisfying",
            },
            "+2": {
                "food": "delicious, divine, heavenly, mouthwatering, sublime",
                "staff": "delightful, impeccable, attentive, gracious, charming",
                "adj": "gorgeous, magical, stunning",
                "verdict": "best dinner ever, pure joy",
            },
        }
    ),
    # made: what stands after "is". works: a verb phrase after "it". The rest as in yelp.
    "amazon": _stars(
        {
            "-2": {
                "made": "broken, worthless, dangerous, cracked, defective",
                "works": "died, exploded, malfunctioned, fell apart",
                "adj": "unusable, fraudulent",
                "verdict": "total waste, landfill fodder",
            },
            "-1": {
                "made": "flimsy, wobbly, loose, thin, cheap",
                "works": "jammed, overheated, struggled, stalled",
                "adj": "misleading, confusing, inferior",
                "verdict": "probably going back, look elsewhere",
            },
            "0": {
                "made": "generic, plain, serviceable, lightweight, cheap",
                "works": ("did enough, coped, managed, sufficed"),
                "adj": "standard, middling, reasonable",
                "verdict": "fit for light use, mixed blessing",
            },
            "+1": {
                "made": "sturdy, solid, comfortable, snug, lightweight",
                "works": "worked, functioned, helped, saved time",
                "adj": "attractive, handy, practical",
                "verdict": "good value, sensible purchase",
            },
            "+2": {
                "made": ("indestructible, impeccable, first-rate, luxurious, exquisite"),
                "works": ("excelled, exceeded expectations, shone, triumphed"),
                "adj": "incredible, unbeatable, spectacular",
                "verdict": "best purchase ever, five shining stars",
            },
        }
    ),
    # what: plural or mass nouns without an article. doing: an activity in -ing.
    "yahoo": {
        "Society & Culture": {
            "what": (
                "religion, folk customs, prayer, superstition, etiquette, holy books, ancestors, "
                "cultural heritage, festivals, moral values, stereotypes, languages, monks, "
                "weddings, scripture, afterlife beliefs, dialects"
            ),
            "doing": ("fasting, praying aloud, meditating, keeping traditions, greeting elders"),
        },
        "Science & Mathematics": {
            "what": (
                "algebra, gravity, black holes, prime numbers, chemical bonds, evolution, "
                "fractions, molecules, geometry proofs, electricity, photosynthesis, planets, "
                "probability, density, cells, python care, calculus"
            ),
            "doing": (
                "solving integrals, mixing acids, measuring velocity, factoring polynomials, "
                "plotting curves"
            ),
        },
        "Health": {
            "what": (
                "headaches, back pain, vitamins, blood pressure, allergies, antibiotics, viruses, "
                "skin rashes, insomnia, diabetes, flu shots, migraines, stress, side "
                "effects, knee injuries, memory, pregnancy"
            ),
            "doing": (
                "losing weight, taking painkillers, quitting smoking, seeing a dentist, fasting"
            ),
        },
        "Education & Reference": {
            "what": (
                "homework, scholarships, essays, dictionaries, exam grades, college applications, "
                "spelling rules, kindergarten, lecture notes, encyclopedias, tuition fees, "
                "quotations, teachers, bibliographies, diplomas, languages, calculus"
            ),
            "doing": (
                "revising for finals, writing a thesis, citing references, studying abroad, "
                "passing an entrance test"
            ),
        },
        "Computers & Internet": {
            "what": (
                "passwords, laptops, browsers, python code, spyware, hard drives, web pages, "
                "email, firewalls, graphics cards, chat rooms, downloads, operating systems, "
                "viruses, spreadsheets, websites, memory"
            ),
            "doing": (
                "installing drivers, deleting cookies, formatting a disk, editing photos, burning "
                "discs"
            ),
        },
        "Sports": {
            "what": (
                "football, batting averages, wrestling, basketball, goalkeepers, playoffs, golf "
                "swings, hockey sticks, marathons, cricket, skateboards, referees, fantasy "
                "leagues, boxing, knee injuries, trophies, coaches"
            ),
            "doing": (
                "dribbling, throwing a curveball, training for a race, lifting weights, losing "
                "weight"
            ),
        },
        "Business & Finance": {
            "what": (
                "mortgages, credit cards, bonds, salaries, income tax, stock prices, savings "
                "accounts, job interviews, loans, invoices, real estate, debts, insurance, "
                "bankruptcy, dividends, websites, taxes"
            ),
            "doing": "investing, budgeting, running a shop, refinancing, trading shares",
        },
        "Entertainment & Music": {
            "what": (
                "movies, song lyrics, guitars, pop stars, cartoons, concerts, horror films, "
                "rappers, soap operas, comic books, drummers, sitcoms, poems, reality shows, "
                "downloads, festivals, actors"
            ),
            "doing": ("singing karaoke, watching reruns, playing drums, dancing, quoting sitcoms"),
        },
        "Family & Relationships": {
            "what": (
                "boyfriends, jealousy, divorce, first dates, marriage, stepchildren, crushes, "
                "in-laws, breakups, lost trust, toddlers, love letters, engagement rings, bonds, "
                "stress, kissing, girlfriends"
            ),
            "doing": ("flirting, dating a coworker, breaking up, raising twins, forgiving an ex"),
        },
        "Politics & Government": {
            "what": (
                "elections, senators, immigration, taxes, welfare, foreign policy, constitutions, "
                "voters, gun laws, congress, presidents, campaign ads, civil rights, embassies, "
                "democracy, free speech, war veterans"
            ),
            "doing": ("voting, running for office, signing petitions, protesting, paying taxes"),
        },
        "general": {
            "what": (
                "beginners, useful tips, mistakes, deadlines, prices, habits, other people, "
                "rumours, good manners, surprises, excuses, second chances, local rules, free "
                "advice"
            ),
            "doing": ("waiting, planning ahead, changing plans, explaining things, helping others"),
        },
    },
    # kind: a singular noun after "a". known: plural or mass nouns without an article.
    "dbpedia": {
        "Company": {
            "kind": (
                "brewing firm, software house, retail chain, holding company, airline operator, "
                "publishing group, carmaker, private bank, mining corporation, shipping line"
            ),
            "known": (
                "annual turnover, shareholders, subsidiaries, mergers, factories, branches, "
                "headquarters staff, consumer brands, stock listings, wholesale contracts, "
                "supermarkets, patents, chief executives, payrolls, bankruptcy proceedings, franchises"
            ),
        },
        "Educational Institution": {
            "kind": (
                "university, grammar school, boarding school, technical college, academy, seminary, "
                "conservatory, law faculty, kindergarten, polytechnic"
            ),
            "known": (
                "undergraduates, enrolment, tuition, lecture halls, degree courses, deans, alumni, "
                "campus life, scholarships, entrance exams, professors, classrooms, headmasters, "
                "student unions, faculties, research institutes"
            ),
        },
        "Artist": {
            "kind": (
                "painter, sculptor, guitarist, singer, songwriter, illustrator, jazz pianist, "
                "ceramicist, rapper, comic artist"
            ),
            "known": (
                "watercolours, gallery exhibitions, portraits, concert tours, vocal style, etchings, "
                "stage performances, art prizes, collaborations, self-taught technique, murals, "
                "bands, caricatures, studio sessions, melodies, bronze statues"
            ),
        },
        "Athlete": {
            "kind": (
                "midfielder, goalkeeper, sprinter, swimmer, boxer, tennis player, cyclist, gymnast, "
                "point guard, figure skater"
            ),
            "known": (
                "goals, league appearances, olympic medals, knockouts, personal bests, transfers, "
                "national caps, touchdowns, relay races, coaching spells, championships, "
                "grand slams, injuries, rookie seasons, sprint finishes, home runs"
            ),
        },
        "Office Holder": {
            "kind": (
                "senator, mayor, cabinet minister, ambassador, governor, bishop, judge, "
                "member of parliament, chancellor, attorney general"
            ),
            "known": (
                "election victories, terms of office, committees, party leadership, legislation, "
                "diplomatic missions, constituencies, votes, portfolios, resignations, ballots, "
                "tax reform, speeches, court rulings, coalitions, vetoes"
            ),
        },
        "Mean of Transportation": {
            "kind": (
                "steam locomotive, destroyer, fighter aircraft, submarine, motorcycle, sports car, "
                "cargo ship, helicopter, tram, paddle steamer"
            ),
            "known": (
                "engines, top speed, hull plates, propellers, horsepower, gearboxes, sea trials, "
                "axles, tracks, cockpits, fuel tanks, torpedoes, wheelbase, landing gear, "
                "passenger decks, wings"
            ),
        },
        "Building": {
            "kind": (
                "castle, cathedral, skyscraper, town hall, lighthouse, manor house, railway station, "
                "theatre, hospital block, stone church"
            ),
            "known": (
                "gothic arches, brick walls, storeys, wings, domes, stained glass, architects, "
                "restoration work, courtyards, spires, facades, marble columns, heritage listing, "
                "bell towers, staircases, slate roofs"
            ),
        },
        "Natural Place": {
            "kind": (
                "river, mountain, glacier, lake, volcano, island, canyon, waterfall, cave, bay"
            ),
            "known": (
                "tributaries, summit routes, elevation, lava flows, drainage basins, cliffs, rapids, "
                "crater rims, glacial valleys, shorelines, water depth, bedrock, hiking trails, "
                "icefields, ridges, limestone"
            ),
        },
        "Village": {
            "kind": (
                "village, hamlet, rural settlement, small municipality, farming community, parish, "
                "township, fishing village, mountain village, district seat"
            ),
            "known": (
                "inhabitants, census figures, households, postal codes, wheat farms, bus services, "
                "literacy rates, village councils, weekly markets, dairy farming, wells, "
                "neighbouring hamlets, dirt roads, population decline, grazing land, parish records"
            ),
        },
        "Animal": {
            "kind": (
                "beetle, moth, songbird, freshwater fish, tree frog, bat, sea snail, lizard, "
                "rodent, spider"
            ),
            "known": (
                "larvae, wingspan, plumage, nests, predators, prey, scales, mating calls, antennae, "
                "tail length, eggs, wings, fins, migration, burrows, venom"
            ),
        },
        "Plant": {
            "kind": (
                "shrub, orchid, fern, flowering tree, moss, grass, cactus, climbing vine, herb, "
                "conifer"
            ),
            "known": (
                "leaves, petals, branches, pollination, seeds, roots, bark, flower heads, stems, "
                "fruit capsules, shade, sandy soil, pollen, scales, spores, foliage"
            ),
        },
        "Album": {
            "kind": (
                "studio album, debut album, live album, compilation, double album, remix record, "
                "extended play, greatest hits collection, soundtrack album, concept album"
            ),
            "known": (
                "tracks, singles, bonus songs, guitar solos, chart positions, lyrics, cover versions, "
                "recording sessions, record labels, sleeve notes, producers, liner art, remixes, "
                "drum loops, vinyl pressings, ballads"
            ),
        },
        "Film": {
            "kind": (
                "silent film, comedy film, thriller, documentary, western, horror film, short film, "
                "war drama, musical film, animated feature"
            ),
            "known": (
                "screenplays, box office takings, directors, leading roles, cinematography, stunts, "
                "cameos, premieres, film festivals, costume design, producers, scenes, "
                "special effects, plots, closing credits, dubbed versions"
            ),
        },
        "Written Work": {
            "kind": (
                "novel, weekly magazine, poetry collection, academic journal, memoir, daily newspaper, "
                "short story, manga series, textbook, children's book"
            ),
            "known": (
                "chapters, narrators, paperback editions, plots, editors, circulation, footnotes, "
                "literary prizes, protagonists, peer review, translations, essays, serial instalments, "
                "manuscripts, prose, sequels"
            ),
        },
        "general": {
            "kind": (
                "familiar example, favourite subject, well-known name, case of interest, "
                "frequent topic, curiosity"
            ),
            "known": (
                "anniversaries, controversies, awards, legends, origins, rediscovery, nicknames, "
                "disputes, photographs, visitors, folklore, changing fortunes, wartime damage, "
                "fame abroad"
            ),
        },
    },
}
