"""What scenes are made of: emoji and their names, colours, shapes, words.

Names come from Unicode CLDR through the `emoji` package; this file adds only shorter forms a person would say. It does
not know how anything is drawn.
"""

from __future__ import annotations

from functools import cache

import emoji

# Kinds that stay apart from each other at 32 pixels in Noto Color Emoji.
EMOJI = (
    "🐶🐱🐭🐰🦊🐻🐼🐨🦁🐯🐮🐷🐸🐵🐔🐧🦉🐴🦄🐝🦋🐌🐞🐢🐍🐙🦀🐟🐬🐳🐘🦒🦓🐪🐑🦔🦆🦩🦜🐊🦕🕷🐜🦇🦈🐿"
    "🌵🌴🌲🌳🌻🌹🌷🍁🍀🍄🍎🍌🍇🍉🍋🍓🍒🍍🥕🌽🍆🥦🍅🍞🧀🍔🍕🌭🍟🍩🍪🎂🍦🍭☕🥚🥑🍐🥥🍬"
    "🚗🚌🚕🚑🚜🚲🚂✈🚀🚁⛵🚢🛴🚚⚽🏀🎈🎁🎸🎺🥁🎹📷📺☎💡🔑🔒🔔⏰📖✂🔨🪑🛏🚪🧲☂👑🎩👟🧦👕👗👓🎒⚓🧸🎲🧩🪁"
    "🏠⛺🕯🏆🥄🔥⚡☀🌙⭐☁❄🌈⛄👻💀🤖👽🎃💎📌🧭🔍🪣🧹🦷👂"
)

# CLDR name -> what a person says. A trailing " face" is dropped from the others.
SHORT = {
    "honeybee": "bee",
    "lady beetle": "ladybug",
    "spouting whale": "whale",
    "ewe": "sheep",
    "sauropod": "dinosaur",
    "chipmunk": "squirrel",
    "evergreen tree": "fir",
    "deciduous tree": "tree",
    "maple leaf": "leaf",
    "four leaf clover": "clover",
    "red apple": "apple",
    "ear of corn": "corn",
    "cheese wedge": "cheese",
    "hamburger": "burger",
    "hot dog": "hotdog",
    "french fries": "fries",
    "doughnut": "donut",
    "birthday cake": "cake",
    "soft ice cream": "ice cream",
    "hot beverage": "coffee",
    "automobile": "car",
    "bicycle": "bike",
    "locomotive": "train",
    "kick scooter": "scooter",
    "delivery truck": "truck",
    "soccer ball": "football",
    "wrapped gift": "gift",
    "musical keyboard": "piano",
    "television": "tv",
    "telephone": "phone",
    "light bulb": "lamp",
    "locked": "lock",
    "alarm clock": "clock",
    "open book": "book",
    "top hat": "hat",
    "running shoe": "shoe",
    "t-shirt": "shirt",
    "teddy bear": "teddy",
    "game die": "die",
    "puzzle piece": "puzzle",
    "high voltage": "lightning",
    "crescent moon": "moon",
    "snowman without snow": "snowman",
    "jack-o-lantern": "pumpkin",
    "gem stone": "gem",
    "magnifying glass tilted left": "magnifier",
}

# Emoji that are of one colour to anyone who looks; tests compare this with their pixels.
COLOUR_OF = {
    "red": "🌹🍎🍓🍅🎈🐞☎🚗",
    "orange": "🥕🏀🎃🦊",
    "yellow": "🍌🍋🧀⭐☀🔑🔔👑⚡🌙",
    "green": "🐸🌵🌲🍀🥦🐊🧩🌳",
    "blue": "🐟🐬👗👟🪣",
    "purple": "🍆🍇",
    "pink": "🐷🦩🌷",
    "brown": "🐻🚪",
    "white": "👻💀🦷☁",
    "grey": "🐘🐭🐨🦈",
    "black": "🎩",
}

# Anchors in RGB; drawn colours stray from them by at most STRAY a channel, which keeps their names.
COLOURS = {
    "red": (215, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 155, 60),
    "blue": (40, 90, 215),
    "purple": (130, 50, 170),
    "pink": (250, 135, 185),
    "brown": (120, 70, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "grey": (130, 130, 130),
}
STRAY = 10
SPELLINGS = {"grey": ("gray",)}

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "heart")

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IRREGULAR = {
    "mouse": "mice",
    "sheep": "sheep",
    "fish": "fish",
    "leaf": "leaves",
    "die": "dice",
    "tooth": "teeth",
    "grapes": "grapes",
    "cherries": "cherries",
    "fries": "fries",
    "scissors": "scissors",
    "socks": "socks",
    "glasses": "glasses",
    "snowman": "snowmen",
    "bread": "breads",
}
UNCOUNTED = {"grapes", "cherries", "fries", "scissors", "socks", "glasses", "corn", "bread", "lightning", "fire"}

# Common words of three to six letters, set as text because three hundred quotes are not easier to read.
_WORDS = """
act add age air all ant apple arm art ask autumn away baby back bag ball bank basket bath beach bed bell bench best
big bird black blue board boat body book bottle bowl box boy brave bread brick bridge bright broom brown brush bus
butter button cake call calm camp candle car card carpet case castle chair chalk cheese child circle city class clay
clean clear clock cloth cloud coast coat coin cold cook cool copper corn corner cotton count cousin cow cream cross
crowd cup dance dark date day deep desk dinner dish doctor door dragon dream dress drive drum dry dust eagle early
earth east easy edge eight engine even every eye face fair fall family farm fast father field film find fire fish five
flag flame floor flower fly fog food foot forest fork four fox free fresh friend frost fruit full game garden gate
ghost gift girl glass glove goat gold good grain grape grass gray great green grey group guest guide hair half hall
hammer hand happy harbor hat head heart heavy help hero hill honey hope horse hotel hour house ice idea ink iron
island jacket jam joke judge juice jump june keep key kind king kite knee knife lake lamp land large laugh leaf learn
left lemon letter level light lime line lion list little long loud love low luck lunch magic mail map march mark
market mask matter meal metal milk mind minute mirror moon music nail name narrow near neck needle nest never new news
night nine noise north nose nurse ocean office olive onion open orange order oven page paint palace paper park party
path peace pear pen pencil pepper phone piano pink place plane plant plate play pocket point pond pool potato prince
print purple quick quiet rabbit race radio rain red rice rich ride right ring river road rock roof room root rope rose
round ruler sail salad salt sand school sea seat second seed seven shade shadow sharp sheep shelf ship shoe shop short
shower silk silver simple sing sister six skin sky sleep slow small smile smoke snow soap soft song soup south space
spice spoon spring square stage stairs star start state steam steel stone stop storm story stove street strong sugar
summer sun sunny sweet swim table tall taxi tea ten tent thick thin three ticket tiger time tiny today tomato tower
town toy train travel tree trip truck trust tulip tunnel turn twelve uncle under valley velvet view violet voice walk
wall warm wash watch water wave way week west wheat wheel white wide wild wind window wing winter wise wolf wood wool
word work world yard year yellow young zebra zero
"""
WORDS = tuple(_WORDS.split())

# Made-up words, so that reading cannot become guessing. No letter here looks like another, in any case of any font.
ONSETS = ("b", "d", "f", "g", "h", "k", "m", "n", "p", "r", "t", "br", "dr", "gr", "tr")
VOWELS = ("a", "e", "u")
CODAS = ("b", "d", "g", "k", "m", "n", "p", "r", "t", "nt", "mp")


@cache
def cldr(char: str) -> str:
    """The emoji's CLDR name, with spaces: "cat face"."""
    entry = emoji.EMOJI_DATA.get(char) or emoji.EMOJI_DATA[f"{char}\ufe0f"]
    return str(entry["en"]).strip(":").replace("_", " ")


@cache
def name(char: str) -> str:
    """What scenes call it: "cat"."""
    full = cldr(char)
    return SHORT.get(full, full.removesuffix(" face"))


@cache
def other_names(char: str) -> tuple[str, ...]:
    """Other right names: the CLDR one and the package's aliases."""
    entry = emoji.EMOJI_DATA.get(char) or emoji.EMOJI_DATA[f"{char}\ufe0f"]
    aliases = (alias.strip(":").replace("_", " ") for alias in entry.get("alias", ()))
    return tuple(sorted({cldr(char), *aliases} - {name(char)}))


def plural(noun: str) -> str:
    """The plural of a name in this file."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    head, _, last = noun.rpartition(" ")
    if last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{head} {last}".strip()


def phrase(noun: str, count: int = 1) -> str:
    """ "a cat", "an owl", "fries", "three cats": as a description says it."""
    if count > 1:
        return f"{NUMBERS[count]} {plural(noun)}"
    if noun in UNCOUNTED:
        return noun
    return f"{'an' if noun[0] in 'aeiou' and noun != 'unicorn' else 'a'} {noun}"
