"""Common English verbs: a word list written for this project, and the forms of each verb.

No tagger is used anywhere in this folder, so a verb is known by its form: `readings("costs")` says which verbs a word may be.
"""

import re
from functools import cache
from typing import NamedTuple

from .words import listed

_REGULAR = listed(
    """
    abandon abolish absorb accept accompany accuse achieve acquire act adapt add address adjust admire admit adopt advance
    advertise advise affect afford agree aim alert allow alter amend amount announce answer appear apply appoint appreciate
    approach approve argue arrange arrest arrive ask assemble assign assist assume attach attack attempt attend attract authorise
    authorize award back bake balance ban base belong benefit blame blend block board boil bolster book borrow bounce brew broaden
    brush burn bury button buzz calculate call campaign cancel capture care carry carve cast cater cause cease celebrate centre
    certify chair challenge change charge chart check cite claim clarify classify clean clear climb close coat collapse collect
    combine command commemorate commence comment commission commit communicate compare compete compile complain complete compose
    comprise conceal concern conclude condemn conduct confirm connect conquer consider consist construct consult consume contact
    contain contest continue contract contribute control convert convince cook cool cooperate copy correct correspond count cover
    crack craft crash create criticise criticize cross crush cultivate cure cycle damage dance date deal debut decay decide
    declare decline decorate decrease dedicate defeat defend define delay delegate delete deliver demand demolish demonstrate deny
    depart depend depict deploy deposit derive descend describe deserve design designate destroy detect determine develop devise
    devote die differ direct disappear discover discuss dismiss display dispute dissolve distinguish distribute disturb divide
    document dominate donate double draft drag drain dress drift drill drop dry dye earn ease edit educate elect elevate eliminate
    email embark emerge emigrate emit employ empty enable enact encounter encourage end endorse enforce engage engrave enjoy
    enlarge enlist ensure enter entertain entitle equip escape escort establish estimate evaluate evolve examine exceed exchange
    exclude execute exempt exhaust exhibit exist expand expect expel experience expire explain explode explore export expose
    express extend extract fail fasten favour favor feature fetch file fill film filter finance finish fire fit fix flood flow
    focus fold follow forbid force form found free fulfil fulfill function fund furnish gain gather generate glaze govern graduate
    grant greet ground guard guarantee guide halt hamper hand handle happen harden harvest haul head heat heighten help hire host
    house identify ignite illustrate implement import impose improve include incorporate increase indicate induct influence inform
    inhabit inherit initiate injure insert inspect inspire install instruct insulate insure integrate intend introduce invade
    invent invest investigate invite involve issue join judge jump kick kill label lack land last launch lease lecture lend level
    license lift limit link list listen live load lobby locate lock lodge log look lower mail maintain manage manufacture march
    mark marry master match mature measure melt mention mine mix modify monitor mount move multiply murder name narrow need nest
    nominate note notice notify number obey object observe obtain occupy occur offer open operate oppose opt order organise
    organize originate oversee overtake owe own pack paint park participate pass patent pause perform permit phase photograph pick
    pilot place plan plant play please plunge point polish possess post postpone pour practise praise predict prefer prepare
    prescribe present preserve press prevent print process produce prohibit project promise promote prompt propose protect prove
    provide publish pull pump punch purchase pursue push qualify quarrel quote race raise range rank rate reach react realise
    realize rebel recall receive recognise recognize recommend reconstruct record recover recruit recycle reduce refer refill
    reflect refuse refund refurbish regard register regulate reject relate release relocate rely remain remark remember remind
    remove rename renew renovate rent repair repeat replace reply report represent request require rescue resemble reserve reside
    resign resist resolve respond rest restore restrict result restart resume retain retire retreat retrieve return reveal review
    revise revive reward ride rinse roll rotate round row ruin rule sail sample save scale schedule score scratch screen seal
    search seat secure select separate serve settle share shelter shift ship shoot shorten shout show sign signal ski skip slice
    slip slow smell smoke soak solve sort span spark specialise specialize specify splinter split sponsor spray stack staff stage
    stain stamp start state station stay stem step stop store stretch struggle study subdue submit succeed suffer suggest suit
    summarise summarize supervise supply support suppose surrender surround survey survive suspend swap switch symbolise tackle
    talk target taste telephone tend test thank tie top total touch tour track trade train transfer transform translate transmit
    transport trap travel treat trigger trim triple try tune turn type undertake unite unlock unload unveil update upgrade urge
    use vaccinate value vanish vary verify visit volunteer vote wait walk want warm warn wash waste watch water weigh welcome
    widen wipe wish witness work worry worship wrap yield compel remit overpower muffle storm besiege debate ratify betray fell
    fertilise brand spare grill roost ripen dislike rehearse loan warrant mend line blow knot pin plug plot bind
    """
)

_IRREGULAR_TEXT = """
arise arose arisen|awake awoke awoken|bear bore borne|beat beat beaten|become became become|begin began begun|bend bent bent|bet bet bet
bid bid bid|bind bound bound|bite bit bitten|bleed bled bled|blow blew blown|break broke broken|breed bred bred|bring brought brought
broadcast broadcast broadcast|build built built|burst burst burst|buy bought bought|cast cast cast|catch caught caught|choose chose chosen
cling clung clung|come came come|cost cost cost|creep crept crept|cut cut cut|deal dealt dealt|dig dug dug|draw drew drawn|drink drank drunk
drive drove driven|eat ate eaten|fall fell fallen|feed fed fed|feel felt felt|fight fought fought|find found found|flee fled fled
fling flung flung|fly flew flown|forbid forbade forbidden|forget forgot forgotten|forgive forgave forgiven|freeze froze frozen|get got got
give gave given|go went gone|grind ground ground|grow grew grown|hang hung hung|have had had|hear heard heard|hide hid hidden|hit hit hit
hold held held|hurt hurt hurt|keep kept kept|kneel knelt knelt|know knew known|lay laid laid|lead led led|leave left left|lend lent lent
let let let|lie lay lain|light lit lit|lose lost lost|make made made|mean meant meant|meet met met|mow mowed mown|overcome overcame overcome
oversee oversaw overseen|overtake overtook overtaken|pay paid paid|prove proved proven|put put put|quit quit quit|read read read
rebuild rebuilt rebuilt|rewrite rewrote rewritten|ride rode ridden|ring rang rung|rise rose risen|run ran run|say said said|see saw seen
seek sought sought|sell sold sold|send sent sent|set set set|sew sewed sewn|shake shook shaken|shed shed shed
shine shone shone|shoot shot shot
show showed shown|shrink shrank shrunk|shut shut shut|sing sang sung|sink sank sunk|sit sat sat|sleep slept slept|slide slid slid
sow sowed sown|speak spoke spoken|spend spent spent|spin spun spun|split split split|spread spread spread
spring sprang sprung|stand stood stood
steal stole stolen|stick stuck stuck|strike struck struck|string strung strung|swear swore sworn|sweep swept swept|swim swam swum
swing swung swung|take took taken|teach taught taught|tear tore torn|tell told told|think thought thought|throw threw thrown
undergo underwent undergone|understand understood understood|undertake undertook undertaken|upset upset upset|wake woke woken
wear wore worn|weave wove woven|win won won|wind wound wound|withdraw withdrew withdrawn|withstand withstood withstood|write wrote written
"""
_IRREGULAR: dict[str, tuple[str, str]] = {}
for _entry in re.split(r"[|\n]+", _IRREGULAR_TEXT.strip()):
    _base, _past, _part = _entry.split()
    _IRREGULAR[_base] = (_past, _part)

_DOUBLING = listed(
    """
    ban drag drop drip fit forbid grab hop hug jog knit knot mop nod occur pad permit pin plan plot plug prefer quit rebel refer
    rob rub run scan set shed ship shop shut sit skip slip spin split stem step stop strip submit swap swim tag tap top transfer
    transmit trap trim wrap admit allot begin chop clap commit compel control dig equip expel get hit let pat propel put win cut
    fulfil travel cancel label level model quarrel signal fuel
    """
)

_PERSONAL_TEXT = listed(
    """
    accuse acquire admire announce argue ask attend become begin believe blame bring buy choose claim collect compose create
    decide declare design devise devote die direct discover donate draw earn eat edit emigrate enjoy establish explain fight find
    found gain give graduate hear help hire identify interview invent invite join judge know lead learn lecture lend live lose
    marry meet move observe paint persuade pay play present propose publish purchase quarrel read recall reconstruct record refuse
    remember report resign retire return say see sell sing speak study succeed suggest teach tell think train travel visit vote
    warn win write work approve chair sign supervise expect promise
    """
)
PERSONAL = frozenset(_PERSONAL_TEXT)  # verbs whose subject is nearly always a person or a body of people


class Reading(NamedTuple):
    """One way to read a word as a verb: its base, and its form (base, s, past, part or ing)."""

    base: str
    form: str


def third(base: str) -> str:
    """The third person singular: try -> tries."""
    if base == "have":
        return "has"
    if re.search(r"(s|x|z|ch|sh|o)$", base):
        return base + "es"
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ies"
    return base + "s"


def _stem(base: str, ending: str) -> str:
    if base in _DOUBLING or re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", base):
        return base + base[-1] + ending
    if ending == "ed" and re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    if base.endswith("ie") and ending == "ing":
        return base[:-2] + "ying"
    if base.endswith("e") and not (ending == "ing" and base.endswith(("ee", "ye", "oe"))):
        return base[:-1] + ending
    return base + ending


def past(base: str) -> str:
    """The simple past: go -> went."""
    return _IRREGULAR[base][0] if base in _IRREGULAR else _stem(base, "ed")


def participle(base: str) -> str:
    """The past participle: go -> gone."""
    return _IRREGULAR[base][1] if base in _IRREGULAR else _stem(base, "ed")


def gerund(base: str) -> str:
    """The -ing form: run -> running."""
    return _stem(base, "ing")


@cache
def _forms() -> dict[str, tuple[Reading, ...]]:
    table: dict[str, list[Reading]] = {}
    for base in dict.fromkeys([*_IRREGULAR, *_REGULAR]):
        forms = (("base", base), ("s", third(base)), ("past", past(base)), ("part", participle(base)), ("ing", gerund(base)))
        for form, word in forms:
            table.setdefault(word, []).append(Reading(base, form))
    table["born"] = [Reading("bear", "part")]
    for word in ("burnt", "learnt", "leapt", "dreamt", "spelt", "built"):
        base = {"built": "build"}.get(word, word[:-1])
        table.setdefault(word, []).extend([Reading(base, "past"), Reading(base, "part")])
    return {word: tuple(readings) for word, readings in table.items()}


def guess_base(word: str) -> str:
    """The base of an unknown -ed word, by spelling: mapped -> map, dated -> date, studied -> study."""
    if word.endswith("ied"):
        return word[:-3] + "y"
    stem = word[:-2]
    if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "lsfz":
        return stem[:-1]
    if re.search(
        r"([aeiou][tzvsgck]|[^aeiou][cvgsz]|[uv]|[bcdgkpt]l|[aeiou][^aeiou]ir|[aiu]r|in|[^e]as|[io]d)$", stem
    ) and not stem.endswith(("ss", "in", "it", "et", "ick", "ock", "uck", "ack", "eck", "ain", "oin")):
        return stem + "e"
    return stem


def readings(word: str) -> tuple[Reading, ...]:
    """Every way to read this lower-case word as a verb; an unknown word in -ed is taken for a regular past form."""
    known = _forms().get(word)
    if known is not None:
        return known
    if re.fullmatch(r"[a-zà-ÿ]{3,}ed", word) and not word.endswith(("eed", "red", "hundred")):
        base = guess_base(word)
        return (Reading(base, "past"), Reading(base, "part"))
    return ()


def has_form(word: str, *forms: str) -> bool:
    """Whether the word can be one of these forms of some verb."""
    return any(reading.form in forms for reading in readings(word))


def base_of(word: str, *forms: str) -> str | None:
    """The base of the verb, read as one of these forms."""
    return next((reading.base for reading in readings(word) if reading.form in forms), None)
