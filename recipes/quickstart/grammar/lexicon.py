"""The words of the quickstart's corpus, by what they go together with.

A line of a table reads "class counter unit: Korean English, ..." for nouns and "Korean/irregular
English: classes or nouns" for verbs and adjectives.
"""

from typing import NamedTuple

from grammar.morphology import Word


class Noun(NamedTuple):
    """A noun: its class, its counter, and for mass nouns the English unit that is counted."""

    ko: str
    en: str
    group: str
    counter: str = ""
    unit: str = ""

    @property
    def countable(self) -> bool:
        """Whether English counts the noun itself."""
        return bool(self.counter) and not self.unit


_NOUNS = """
job 명: 학생 student, 대학생 college student, 의사 doctor, 간호사 nurse, 가수 singer, 화가 painter
job 명: 작가 writer, 기자 reporter, 배우 actor, 농부 farmer, 군인 soldier, 경찰관 police officer
job 명: 요리사 chef, 교사 teacher, 변호사 lawyer, 과학자 scientist, 운전사 driver
folk 명: 소년 boy, 소녀 girl, 아이 child, 남자 man, 여자 woman, 사람 person, 손님 guest
folk 명: 외국인 foreigner, 친구 friend, 이웃 neighbor
kin 명: 여동생 younger sister, 남동생 younger brother, 딸 daughter, 아들 son
kin 명: 사촌 cousin, 삼촌 uncle, 이모 aunt, 조카 nephew
animal 마리: 개 dog, 고양이 cat, 말 horse, 소 cow, 오리 duck, 토끼 rabbit, 곰 bear, 원숭이 monkey
animal 마리: 돼지 pig, 양 sheep, 닭 chicken, 쥐 mouse, 여우 fox, 호랑이 tiger, 사자 lion
animal 마리: 코끼리 elephant, 거북이 turtle
fruit 개: 사과 apple, 바나나 banana, 오렌지 orange, 토마토 tomato, 감자 potato, 달걀 egg
fruit 개: 복숭아 peach, 딸기 strawberry
snack 개: 샌드위치 sandwich, 햄버거 hamburger, 쿠키 cookie, 만두 dumpling
dish 조각 piece: 빵 bread, 고기 meat, 생선 fish, 케이크 cake, 피자 pizza, 치즈 cheese
dish 그릇 bowl: 밥 rice, 수프 soup, 국수 noodle soup
drink 잔 cup: 커피 coffee, 차 tea
drink 잔 glass: 물 water, 우유 milk, 주스 juice, 와인 wine
text 권: 책 book, 소설 novel, 잡지 magazine, 만화책 comic book, 사전 dictionary
letter 통: 편지 letter, 이메일 email
show 편: 영화 movie, 드라마 drama, 연극 play
poem 편: 시 poem
song 곡: 노래 song
sound: 음악 music
clothes 벌: 코트 coat, 치마 skirt, 셔츠 shirt, 드레스 dress, 스웨터 sweater
shoe 켤레 pair: 구두 shoes, 양말 socks, 장갑 gloves
thing 개: 가방 bag, 시계 watch, 우산 umbrella, 모자 hat, 반지 ring, 거울 mirror, 인형 doll
thing 개: 컵 cup, 접시 plate, 선물 gift, 지갑 wallet, 열쇠 key, 공 ball
furniture 개: 의자 chair, 책상 desk, 침대 bed, 상자 box
machine 대: 컴퓨터 computer, 텔레비전 television, 카메라 camera, 냉장고 refrigerator
instrument 대: 피아노 piano, 기타 guitar, 바이올린 violin
vehicle 대: 자동차 car, 자전거 bicycle, 트럭 truck
transport 대: 버스 bus, 기차 train, 택시 taxi
paper 장: 사진 photo, 표 ticket, 우표 stamp, 그림 painting, 지도 map
plant 송이: 꽃 flower, 장미 rose
tree 그루: 나무 tree
opening 개: 문 door, 창문 window
room 개: 방 room, 부엌 kitchen, 교실 classroom, 사무실 office
small 개: 동전 coin, 돌 stone
pen 자루: 연필 pencil
study: 한국어 Korean, 영어 English, 중국어 Chinese, 수학 math, 역사 history, 과학 science
"""

# "verb English: classes or nouns that it takes: its extras" with extras p(lace), s(hop),
# m(anner) and c(ompanion).
_ACTIONS = """
먹다 eat: fruit snack dish: pmc
마시다 drink: drink: pmc
요리하다 cook: 생선 고기 감자 달걀 국수: mc
굽다/ㅂ bake: 빵 케이크 쿠키 피자 감자: mc
만들다 make: 빵 케이크 쿠키 샌드위치 인형 의자 가방 드레스 수프 치즈: mc
사다 buy: fruit drink text clothes shoe thing furniture machine vehicle paper plant: sc
팔다 sell: fruit text clothes shoe thing furniture vehicle plant: s
읽다 read: text letter poem: pmc
쓰다 write: letter poem 소설: pmc
보다 watch: show: pc
듣다/ㄷ listen to: sound song: pc
배우다 learn: study: pc
가르치다 teach: study: p
공부하다 study: study: pmc
만나다 meet: person kin: p
기다리다 wait for: person kin transport: p
돕다/ㅂ help: person kin: p
초대하다 invite: person kin:
따라가다 follow: person animal: p
씻다 wash: fruit 컵 접시: mc
닦다 wipe: 창문 거울 책상 접시 구두: mc
열다 open: opening 상자 가방 냉장고: m
닫다 close: opening 상자 가방 냉장고: m
타다 ride: 자전거 말 버스 기차 코끼리: c
운전하다 drive: 자동차 트럭 버스 택시:
고치다 fix: vehicle machine 시계 의자 문: m
그리다 draw: animal plant tree 지도: pmc
찍다 take: 사진: pc
부르다/르 sing: song: pc
연주하다 play: instrument: pc
키우다 raise: 개 고양이 토끼 소 돼지 닭 말 오리 양:
입다 wear: clothes:
신다 wear: 구두 양말:
자르다/르 cut: 빵 케이크 사과 고기 감자 피자: m
빌리다 borrow: text 우산 자전거 카메라 연필 자동차:
줍다/ㅂ pick up: 공 동전 열쇠 연필 지갑 돌:
고르다/르 choose: clothes 선물 모자 반지 책 꽃:
던지다 throw: 공 돌 동전:
옮기다 move: furniture 냉장고 피아노 텔레비전: mc
숨기다 hide: 선물 열쇠 편지 반지 상자 인형:
청소하다 clean: room: mc
켜다 turn on: 컴퓨터 텔레비전 카메라:
끄다 turn off: 컴퓨터 텔레비전 카메라:
심다 plant: 나무 꽃 장미 감자: c
"""

# Verbs without a progressive or a wish: lasting states, and what befalls one (told of the past).
_STATES = """
좋아하다 like: person animal fruit snack dish drink text show song sound plant study
싫어하다 hate: fruit snack dish drink study animal
사랑하다 love: person kin 고양이 개
믿다 trust: person kin
기억하다 remember: person kin show song poem
"""
_EVENTS = """
보다 see: person kin animal
잃어버리다 lose: 열쇠 가방 우산 시계 반지 표 지갑 장갑
깨뜨리다 break: 컵 접시 창문 거울
찾다 find: person animal thing 연필 표 지도
발견하다 discover: 열쇠 반지 동전 지갑 고양이 지도 사진
받다 receive: 선물 letter plant 표 그림
"""

_GIVING = """
주다 give: text thing plant paper drink fruit
보내다 send: letter 선물 사진 책 꽃 그림 지도 표
보여주다 show: paper text 반지 시계 letter
빌려주다 lend: text 우산 자전거 카메라 연필 자동차
"""

# Where one does what needs no object.
_DOING = """
일하다 work: 병원 식당 도서관 카페 박물관 공항 호텔 학교 서울 부산 시골 집 정원
공부하다 study: 학교 도서관 카페 집 서울 부산
놀다 play: 공원 해변 정원 집 수영장 학교 시골
자다 sleep: 집 호텔 병원 공항 역 도서관 정원
쉬다 rest: 집 공원 카페 호텔 해변 정원 시골
걷다/ㄷ walk: 공원 해변 정원 시골 서울 부산
달리다 run: 공원 해변 정원 학교 시골
춤추다 dance: 공원 해변 호텔 집 학교
웃다 laugh: 학교 집 카페 식당 공원
울다 cry: 집 병원 학교 공항 역 공원
노래하다 sing: 집 학교 공원 카페 해변
수영하다 swim: 수영장 해변 호텔 부산 시골
운동하다 exercise: 공원 집 학교 수영장 해변
"""
_ANIMAL = """
먹다 eat: fruit 고기 생선 빵 치즈
마시다 drink: 물 우유
쫓다 chase: 쥐 토끼 고양이 오리 닭 공
물다 bite: 쥐 공 고기 빵 생선
"""
_MOVING = "가다 go, 오다 come, 돌아가다 return, 걸어가다 walk, 달려가다 run"

# "adjective English: classes or nouns that it describes"; 있다-adjectives are found by their stem.
_ADJECTIVES = """
친절하다 kind: person
똑똑하다 smart: person 개 원숭이 돼지 말
유명하다 famous: person text show song 그림
젊다 young: person
행복하다 happy: person
슬프다 sad: person song show
바쁘다 busy: person
피곤하다 tired: person
배고프다 hungry: person animal
아름답다/ㅂ beautiful: plant song 드레스 반지 그림
게으르다/르 lazy: person 고양이 개
부지런하다 diligent: person
건강하다 healthy: person animal
용감하다 brave: person 사자 호랑이 개
키가~크다 tall: person
크다 big: animal fruit furniture thing machine vehicle tree room
작다 small: animal fruit furniture thing machine vehicle plant tree room
귀엽다/ㅂ cute: animal 인형 아이 소녀 소년
빠르다/르 fast: 말 토끼 개 vehicle transport
느리다 slow: 거북이 소 코끼리 vehicle transport 컴퓨터
맛있다 delicious: fruit snack dish drink
달다 sweet: 사과 바나나 오렌지 복숭아 딸기 쿠키 케이크 주스
신선하다 fresh: fruit 빵 생선 우유 고기
차갑다/ㅂ cold: drink
뜨겁다/ㅂ hot: 커피 차 물 우유 수프
비싸다 expensive: fruit drink clothes shoe thing furniture machine instrument vehicle 고기
싸다 cheap: fruit drink clothes shoe thing furniture machine instrument vehicle 고기
무겁다/ㅂ heavy: furniture machine 가방 피아노 돌 사전
가볍다/ㅂ light: 의자 상자 가방 카메라 우산 코트 구두
예쁘다 pretty: clothes shoe plant 가방 모자 반지 인형 접시 소녀
낡다 old: furniture clothes shoe vehicle 가방 모자 책 피아노 시계
깨끗하다 clean: clothes shoe room 컵 접시 창문 거울
더럽다/ㅂ dirty: clothes shoe room 컵 접시 창문 거울
빨갛다/ㅎ red: clothes shoe vehicle plant 가방 모자 우산 공 사과
파랗다/ㅎ blue: clothes shoe vehicle 가방 모자 우산 공 문
하얗다/ㅎ white: clothes shoe vehicle plant 가방 모자 우산 말 고양이 토끼
까맣다/ㅎ black: clothes shoe vehicle 가방 모자 우산 말 고양이 개
노랗다/ㅎ yellow: clothes plant 가방 모자 우산 공 버스
재미있다 interesting: text show
어렵다/ㅂ difficult: text study
쉽다/ㅂ easy: text study 노래
길다 long: text letter poem song 치마 코트
짧다 short: poem song letter 치마 소설 연필
"""

_NAMES = """
민수 Minsu, 지영 Jiyoung, 서준 Seojun, 수진 Sujin, 영호 Yeongho, 유나 Yuna, 지호 Jiho, 은지 Eunji,
동현 Donghyun, 미나 Mina, 준호 Junho, 하늘 Haneul
"""
# Korean, English with the preposition of rest; the bare place noun is definite in English.
_PLACES = """
집 at home, 학교 at school, 도서관 at the library, 공원 in the park, 카페 at the cafe,
병원 at the hospital, 식당 at the restaurant, 박물관 at the museum, 역 at the station,
공항 at the airport, 호텔 at the hotel, 해변 at the beach, 정원 in the garden, 서울 in Seoul,
부산 in Busan, 시골 in the countryside, 수영장 at the pool
"""
FAR = ("서울", "부산", "시골", "공항")
_SHOPS = """
가게 at the store, 시장 at the market, 백화점 at the department store, 서울 in Seoul, 부산 in Busan,
공항 at the airport
"""
# Korean position, English preposition; and what has something there.
POSITIONS = {"위": "on", "아래": "under", "옆": "next to", "앞": "in front of", "뒤": "behind",
             "안": "in"}  # fmt: skip
LANDMARKS = {
    "책상": "위 아래 옆",
    "의자": "위 아래 옆 뒤",
    "침대": "위 아래 옆",
    "나무": "아래 옆 뒤",
    "문": "앞 옆 뒤",
    "상자": "안 위 옆 뒤",
    "가방": "안 옆",
    "자동차": "안 아래 옆 앞 뒤",
}


def _entries(text: str) -> list[tuple[str, str]]:
    entries = (entry.strip().partition(" ") for entry in text.split(","))
    return [(ko, en) for ko, _, en in entries]


def _parse_nouns() -> dict[str, Noun]:
    nouns = {}
    for line in _NOUNS.strip().splitlines():
        head, _, items = line.partition(":")
        group, *counting = head.split()
        for ko, en in _entries(items):
            nouns[ko] = Noun(ko, en, group, *counting)
    return nouns


NOUNS = _parse_nouns()
NAMES = tuple(Noun(ko, en, "name") for ko, en in _entries(_NAMES))
PLACES, SHOPS = (dict(_entries(text)) for text in (_PLACES, _SHOPS))


def group(*names: str) -> list[Noun]:
    """The nouns of the named classes (or so named themselves); person is job and folk."""
    names += ("job", "folk") * ("person" in names)
    return [noun for noun in NOUNS.values() if noun.group in names or noun.ko in names]


def _word(text: str, kind: str = "verb") -> Word:
    entry, english = text.strip().split(" ", 1)
    dictionary, _, irregular = entry.partition("/")
    return Word(dictionary[:-1].replace("~", " "), kind, irregular, english)


def _table(text: str, kind: str = "verb") -> list[tuple[Word, list[Noun], str]]:
    rows = (line.split(":") for line in text.strip().splitlines())
    return [(_word(row[0], kind), group(*row[1].split()), "".join(row[2:]).strip()) for row in rows]


ACTIONS, STATES, EVENTS, GIVING, ANIMAL = map(
    _table, (_ACTIONS, _STATES, _EVENTS, _GIVING, _ANIMAL)
)
ADJECTIVES = [
    (word._replace(kind="exist" if word.stem.endswith("있") else "adjective"), nouns)
    for word, nouns, _ in _table(_ADJECTIVES)
]
DOING = [
    (_word(row), places.split())
    for row, places in (line.split(":") for line in _DOING.strip().splitlines())
]
MOVING = [_word(item) for item in _MOVING.split(",")]
