"""Closed word classes and short lists, written for this project: function words, units, dates, titles and roles."""

import re


def listed(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


DETERMINERS = listed(
    """
    the a an this that these those each every some any no all both either neither another such
    """
)
POSSESSIVES = listed("my your his her its our their")
PRONOUNS = listed(
    """
    i you he she it we they me him us them himself herself itself themselves this that these those anyone someone nobody everyone
    """
)
PERSONAL_PRONOUNS = listed("i he she it we they me him us them himself herself itself themselves")
PREPOSITIONS = listed(
    """
    of in on at by for with without from to into onto over under above below between among through during before after against
    near behind beneath beside beyond across along around about within outside inside upon toward towards via per until till since
    despite like than off up out down except throughout amid alongside opposite past plus as unlike
    """
)
PLACE_PREPOSITIONS = listed(
    """
    in on at under above below between among near behind beneath beside across along around within outside inside through opposite
    over into onto
    """
)
SUBORDINATORS = listed(
    """
    because since although though while whereas unless if when whenever once until after before so provided as
    """
)
RELATIVES = listed("which who whom whose where that")
CONJUNCTIONS = listed("and but or nor yet so")
BE = listed("am is are was were be been being")
HAVE = listed("have has had having")
DO = listed("do does did")
MODALS = listed("can could may might must shall should will would cannot")
FINITE_AUXILIARIES = listed(
    """
    am is are was were have has had do does did can could may might must shall should will would cannot
    """
)
ADVERBS = listed(
    """
    not never also only then now always often usually already still even just soon again once twice thrice later too very first
    last together away almost nearly about roughly approximately however therefore instead thus afterwards meanwhile eventually
    here there please today tomorrow yesterday ever else quite rather long far back best most
    """
)
DEGREE = listed(
    """
    about around nearly almost roughly approximately over under exactly only just some at least most more than less fewer up to
    """
)
ADJECTIVES = listed(
    """
    yearly hourly elderly friendly lively faster slower older younger earlier cheaper heavier deeper wider taller shorter
    able big small large great little new old young early late high low long short wide narrow deep heavy light hard soft full
    closed available valid scarce red blue green white black grey gray yellow orange brown pink purple amber good bad best main
    major minor native national local annual monthly weekly daily flat single double equal second third fourth fifth sixth seventh
    eighth ninth tenth other same different several many few much more most own known responsible famous popular important
    possible necessary ready active dangerous safe cold hot wet dark bright public private common rare strong weak due subject
    eligible busy sick asleep alive dead fond unique similar northern southern eastern western central original final total net
    gross wooden metal golden mandatory optional free-standing first last next previous retired former current hungry afraid proud
    aware careful tall thick thin round square longer aged larger smaller higher lower better worse fewer
    """
)
ADJECTIVE_VERBS = listed("open close clean clear dry free warm cool empty")
MONTHS = listed(
    """
    january february march april may june july august september october november december
    """
)
DAYS = listed(
    """
    monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays sundays
    weekday weekend
    """
)
SEASONS = listed(
    """
    spring summer autumn winter fall midsummer christmas easter noon midnight midday dawn dusk morning afternoon evening night
    """
)
TIME_UNITS = frozenset({"per cent"}) | listed(
    """
    second seconds minute minutes hour hours day days week weeks month months year years decade decades century centuries night
    nights fortnight season seasons
    """
)
CURRENCIES = listed(
    """
    euro euros dollar dollars pound pounds cent cents penny pence franc francs crown crowns krona kronor krone kroner yen yuan
    rupee rupees peso pesos lira ruble rubles mark marks florin florins guilder guilders shilling shillings ducat ducats thaler
    thalers dinar dirham
    """
)
UNITS = frozenset({"per cent"}) | listed(
    """
    metre metres meter meters kilometre kilometres kilometer kilometers centimetre centimetres centimeter centimeters millimetre
    millimetres mile miles foot feet inch inches yard yards gram grams kilogram kilograms kilo kilos tonne tonnes ton tons ounce
    ounces litre litres liter liters millilitre millilitres gallon gallons hectare hectares acre acres degree degrees volt volts
    watt watts kilowatt kilowatts milliwatt milliwatts megawatt megawatts amp amps hertz decibel decibels bar bars kg km cm mm m g
    l ml mw kw kwh gb mb tb mph kph knots knot percent microns micron lux lumens pixels bytes calories newtons pascals fathoms
    fathom leagues
    """
)
NUMBER_WORDS = listed(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen half quarter
    """
)
HONORIFICS = listed(
    """
    mr mrs ms miss dr prof professor sir lady lord dame captain private sergeant lieutenant corporal admiral marshal commander
    colonel major general sister brother father saint king queen prince princess count countess duke duchess baron reverend judge
    """
)
ROLES = listed(
    """
    chair chairman chairwoman chairperson treasurer secretary president director manager head leader founder author editor captain
    pastor bishop priest weaver electrician engineer architect designer painter sculptor composer singer poet novelist writer
    journalist historian teacher professor doctor nurse surgeon lawyer judge mayor governor minister senator king queen emperor
    general admiral officer clerk foreman forewoman supervisor coordinator organiser curator keeper warden caretaker gardener
    baker brewer farmer merchant trader banker impresario conductor trainer coach driver pilot sailor boxer fighter astronomer
    botanist chemist physicist biologist geologist glaciologist mountaineer explorer inventor carpenter mason potter blacksmith
    clockmaker printer photographer actor actress dancer producer broadcaster midwife diarist husband wife son daughter brother
    sister father mother uncle aunt widow granddaughter grandson colleague assistant successor predecessor owner tenant landlord
    volunteer member technician lead nephew niece cartographer auditor reader worker employee guest waiter soldier defender miner
    villager settler passenger customer caller carer parent neighbour neighbor applicant candidate diver player rider monk nun
    pilgrim climber offender conservator beekeeper trainee patient attacker raider fisherman inspector commander lieutenant
    sergeant deputy citizen inhabitant follower visitor newcomer beginner musician commissioner councillor cousin rival student
    pupil apprentice librarian archivist ecologist scientist researcher rector dean
    """
)
BODIES = listed(
    """
    club committee society association company council board trust foundation institute university college school group team union
    bank office agency ministry department museum library ltd inc gmbh plc llc orchestra church parish order guild league
    federation party court commission cooperative assurance textiles pottery estates
    """
)
PLACES = listed(
    """
    hall room building house street road square park garden yard shed store shop market station port harbour harbor bay lake river
    sea ocean island mountain hill valley forest village town city district county province country state region kingdom hut cabin
    barn farm field church school hospital library museum theatre theater bridge tower castle palace gate door entrance floor roof
    basement cellar attic kitchen workshop office desk shelf drawer cupboard bank coast shore beach pond reservoir canal dock pier
    warehouse factory mill mine quarry camp border north south east west centre center corner site inn hotel archive lobby foyer
    cloakroom locker cabinet laboratory lab pass glacier wall loom gallery lane bench
    """
)
ABSTRACT = listed(
    """
    case fact order time place charge return general particular addition part favour favor use practice response writing cash
    person advance detail office interest need danger honour honor memory total turn view way effect force operation exchange
    protest silence secret public private rotation english french german spanish latin full vain common short brief term terms
    condition basis manner rate request behalf purpose average
    """
)
CATENATIVES = listed(
    """
    agree expect tend want wish plan hope intend try begin start continue refuse decide need have promise offer fail prepare seek
    manage happen seem appear learn choose propose threaten use cease attempt like prefer be go allow require ask tell order
    permit urge enable invite force persuade teach help oblige
    """
)
MEASURE_NOUNS = listed(
    """
    deposit width length height depth weight fee fine price cost budget limit rate pressure temperature distance area population
    capacity speed age total sum debt rent salary wage charge number amount volume size power output score share average maximum
    minimum period term duration penalty radius diameter grant prize reward sentence discount tax levy toll loan value frequency
    voltage altitude elevation
    """
)
STOP = (
    DETERMINERS
    | POSSESSIVES
    | PRONOUNS
    | PREPOSITIONS
    | SUBORDINATORS
    | RELATIVES
    | CONJUNCTIONS
    | BE
    | HAVE
    | DO
    | MODALS
    | listed(
        """
    not what when why how many much tell me name whose there thing kind number amount given state say please according does long
    """
    )
)

NUMBER = re.compile(r"[$€£¥]?\d[\d,.:/]*\d%?(?:st|nd|rd|th|s)?|[$€£¥]?\d%?(?:st|nd|rd|th)?|[$€£¥]\d+")
YEAR = re.compile(r"(?:1[0-9]|20)\d\ds?")
CLOCK = re.compile(r"\d{1,2}[:.]\d\d|\d{1,2}(?:am|pm)")


def is_number(word: str) -> bool:
    """Whether the word is a number in digits or letters (thirty-one, 8,000, 1.5, 40%)."""
    lower = word.lower()
    if NUMBER.fullmatch(lower):
        return True
    return bool(lower) and lower not in {"half", "quarter"} and all(part in NUMBER_WORDS for part in lower.split("-"))


def singular(noun: str) -> str:
    """A plain singular of a regular plural."""
    lower = noun.lower()
    if lower.endswith("ies") and len(lower) > 4:
        return noun[:-3] + "y"
    if lower.endswith(("sses", "xes", "ches", "shes")):
        return noun[:-2]
    if lower.endswith("s") and not lower.endswith(("ss", "us", "is")):
        return noun[:-1]
    return noun


def is_plural(noun: str) -> bool:
    """Whether a noun looks plural."""
    lower = noun.lower()
    return lower in {"people", "men", "women", "children", "staff", "police", "feet", "teeth", "mice", "sheep"} or (
        lower.endswith("s") and not lower.endswith(("ss", "us", "is", "'s", "news", "atlas", "lens", "gas", "canvas", "christmas"))
    )
