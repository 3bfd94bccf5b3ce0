"""Words that hold a sentence together or make it a question, in languages besides English.

They say nothing about a memory. A word such as "die" or "war" is one in German only: the list of a language counts
where the question has more words of it than of English or of any other language.
"""

from __future__ import annotations

from collections.abc import Sequence

# Folded: lower case, without accents.
_WORDS = {
    "English": "the a an of is are was were what which who when where how why do does did my in on for to and with it that this i you have has be can at by from not",
    "German": "der die das den dem des ein eine einen einem einer eines und oder aber nicht kein keine ist sind war waren wird werden wurde hat haben hatte was wer wen wem wo wohin woher wann wie warum wieso weshalb welche welcher welches welchen wieviel viel viele ich du er sie es wir ihr mich mir dich uns mein meine meinen meiner unser unsere sein seine zu zum zur in im an am auf aus bei beim mit nach von vom vor fur uber unter um durch bis seit man kann muss soll darf gibt noch schon auch denn als wenn dass ob da hier",
    "French": "le la les l un une des du de d et ou mais ne pas n est sont etait etaient sera a ont avait qui que qu quoi quel quelle quels quelles ou quand comment pourquoi combien je tu il elle on nous vous ils elles me te se mon ma mes notre nos votre son sa ses leur ce cet cette ces c s au aux en dans sur sous avec pour par chez entre sans faut peut doit y plus aussi si est-ce quelqu",
    "Spanish": "el la los las un una unos unas de del y o pero no es son era eran esta estan fue ha han hay que quien quienes cual cuales donde cuando como por para cuanto cuanta cuantos cuantas yo tu el ella nosotros ellos me te se nos mi mis nuestro nuestra su sus a al en con sin sobre entre desde hasta lo le les este esta ese esa puedo puede tengo tiene hace muy mas",
    "Italian": "il lo la i gli le l un uno una di del dello della dei delle degli e o ma non e sono era erano ha hanno ho c che chi quale quali dove quando come perche quanto quanta quanti quante io tu lui lei noi voi loro mi ti si ci mio mia miei mie nostro nostra suo sua a al allo alla ai alle in nel nella con su sul sulla per da dal dalla tra fra se questo questa devo deve posso anche piu",
    "Portuguese": "o a os as um uma de do da dos das e ou mas nao e sao era foi esta estao tem ha que quem qual quais onde quando como porque quanto quanta quantos quantas eu tu ele ela nos eles me te se meu minha meus minhas nosso nossa seu sua em no na nos nas com sem por para pelo pela entre ate isso este esta devo pode tenho muito mais",
    "Dutch": "de het een en of maar niet geen is zijn was waren wordt worden werd heeft hebben had wat wie waar waarom wanneer hoe hoeveel welke welk ik jij je hij zij ze wij we jullie mij me mijn ons onze zijn haar hun in op aan bij met van voor naar uit over onder door om te tot als dat die dit deze er kan moet mag ook nog",
    "Swedish": "en ett den det de och eller men inte ar var vad vem vilken vilket vilka nar hur varfor jag du han hon vi ni min mitt mina var vart i pa av till fran med for om som att har hade ska kan finns",
    "Polish": "i oraz lub ale nie jest sa byl byla bylo co kto kogo jaki jaka jakie ktory ktora ktore gdzie kiedy jak dlaczego ile ja ty on ona my wy moj moja moje nasz nasza w we na do od z ze po o za przy dla przez pod sie ma mam to ten ta",
    "Russian": "и или но не в во на к с со о об от до по за из у для при без под над это этот эта эти тот кто что какой какая какое какие где куда откуда когда как почему зачем сколько я ты он она мы вы они мои моя мое мой наш наша наше мне меня нам нас есть был была было были ли же бы",
    "Turkish": "ve veya ama degil bir bu su o ne kim nerede nereye nasil neden nicin kac hangi ben sen biz siz benim bizim icin ile mi mu da de var yok",
}
_LISTS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_LEAST = 2


def language(words: Sequence[str]) -> str:
    """What *words* (folded) are in: the language whose function words they have most of; "English" where that is unclear."""
    counts = {name: sum(word in known for word in words) for name, known in _LISTS.items()}
    best = max(counts, key=lambda name: counts[name])
    least = 1 if best == "Russian" else _LEAST
    return best if counts[best] >= least and counts[best] > counts["English"] else "English"


def function_words(name: str) -> frozenset[str]:
    """The function words of the language *name*, folded."""
    return _LISTS[name]
