"""Writes the messages of the tag job: made-up tickets, chats, e-mails, logs, invoices, letters with known entities.

`message(seed, split)` gives a text and its entities. The splits share the layouts of messages and most formats of
values; templates, names, towns, companies and the words of addresses are disjoint. In a template ``[a|b]`` chooses a
wording, ``{UPPER}`` is an entity and ``{lower}`` is something that must not be taken for one.

What counts: a DATE has a day and a month, without its weekday or time of day; an IP_ADDRESS stands without port and
prefix length, and not inside a URL; a PHONE without extension; a PERSON without title or possessive.

    python jobs/demo/make_messages.py

takes a few seconds and writes messages.parquet, which has three bad rows (a null, a blank, bytes that are not UTF-8)
and two very long ones, and held_out_messages.jsonl, from other seeds, to measure a tagger on.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from datetime import date, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from make_corpus import CONTEXT, LINE_POOLS, SHARED, SUBJECTS
from make_corpus import WORDS as COMMON

HERE = Path(__file__).parent
TYPES = ("EMAIL", "PHONE", "IP_ADDRESS", "URL", "DATE", "MONEY", "PERSON")
TYPE_OF_SLOT = {
    "FIRST": "PERSON",
    "SURNAME": "PERSON",
    "IP": "IP_ADDRESS",
    "IP6": "IP_ADDRESS",
    "STAMP": "DATE",
}
SLOTS = re.compile(r"\{(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")  # a bracket without a bar is one of the text
ROWS, LONG_WORDS = 300, 3400
BAD_ROWS: dict[int, bytes | None] = {
    71: None,
    158: b" \r\n\t",
    233: "Grüße aus Köln, bitte um Rückruf".encode("latin-1"),
}


def listed(words: str) -> list[str]:
    """The words of a list, in which ~ stands for a blank."""
    return [word.replace("~", " ") for word in words.split()]


FIRST_NAMES = {
    "train": """Maria José Anna Björn Chloé Dmitri Elena Fatima Giovanni Hannah Ibrahim Julia Kofi Laura Mehmet Nadia
    Olivia Paolo Quentin Rosa Samuel Tariq Ursula Viktor Wanda Xavier Yolanda Zofia Aisha Benjamin Carlos Daniela
    Edward Fiona George Helena Igor Jasmine Karl Lucía Martin Nina Oscar Priya Robert Sofia Thomas Uwe Vera William
    Ximena Yuki Zoltan Amélie Bogdan Céline Diego Eszter François Greta Hugo Ines Jakub Katarzyna Liam Müge Nils Oksana
    Pedro Rahul Sinéad Tomáš Ulrike Valentina Wei Yasmin Zara Adebayo Birgit Chidi Dorota Emre Frieda Gonzalo Hiroshi
    Ilse Joanna Kenji Lars Miriam Noah Olga Patrick Ruth Stefan Teresa Vikram Walter Jean-Luc Anne-Marie Mary Peter
    Paul John James Emily Grace Alice Frank Henry Jack Kate Mark Will Rose Hope Sunil Deepa Anil Ming Hui Tuan Linh
    Aaron Abigail Adam Adriana Agata Albert Alejandro Alena Alexander Alina Amanda Amina Andrea Andrzej Angela Anton
    Antonella Ashley Astrid Barbara Beata Bianca Boris Brenda Bruno Caroline Catherine Cecilia Charles Christine
    Christopher Claudia Cristina Cyril Damian David Deborah Delia Dominik Donald Dora Duncan Edith Eduardo Elisabeth
    Elsa Emma Enrique Erik Erin Eugenia Evelyn Fabian Farah Fernando Filip Flora Francesca Gabriel Gerda Gilbert Gloria
    Gustavo Halina Harold Hassan Heather Hedwig Heinrich Henrike Hilda Ignacio Irene Isabel Ivan Jacqueline Janet Jason
    Jelena Jennifer Jessica Johanna Jorge Josephine Judith Julian Kamila Karen Kevin Khadija Klaus Kristina Leila Leon
    Leonardo Lidia Lorenzo Lucas Luisa Malcolm Manuela Marcel Margaret Marina Marta Matthias Melissa Michael Mikhail
    Milena Mohamed Monika Natalia Nicholas Nicole Noemi Omar Orla Oskar Pamela Patricia Pavel Petra Pierre Rachel Rafael
    Ramón Raquel Regina Renata Richard Roberta Roman Rosalind Rosemary Sabine Salma Sandra Sarah Sebastian Selma Sergei
    Silvia Simon Sonia Stella Svetlana Sylvie Tanja Tatiana Tobias Toshiro Usha Valerie Vincent Violeta Vladimir
    Wilhelm Winston Yannick Yusuf Zainab Željko Åsa Élodie Örjan Łucja""",
    "held_out": """Alejandra Bartosz Camille Darius Esther Florian Gülşen Harriet Ivana Joaquín Kristín Leopold Mónica
    Nkechi Ottilie Pascal Rebecca Sławomir Tamara Umberto Veronika Wojciech Yvonne Zlatan Agnès Bernard Clara Désirée
    Elliot Franziska Gareth Ingrid Jerome Keiko Ludmila Matteo Nora Oluwaseun Philippa Rukmini Søren Theresa Vivek Wilma
    Aoife Basil Cornelia Dennis Eva-Lena Felix Gita Hamza Isolde Jonas Kerstin Magnus Natasha Oliver Pauline Ronald
    Susan Timothy Victor Wendy Arthur Brian Charlotte Douglas June Mina Jin Anh Ravi Meera""",
}
SURNAMES = {
    "train": """García Smith Müller Kowalski Rossi Ivanov Nguyen Okafor Hansen Silva Dubois Papadopoulos Yılmaz Novák
    Johnson Patel Tanaka Haddad Eriksson Fernández O'Brien MacDonald Schröder Lefèvre Horváth Popescu Kim Chen Singh
    Mensah Diallo Jansen Peeters Costa Moreau Bianchi Wójcik Petrov Nowak Larsen Virtanen Keller Baker Taylor Brown
    Wilson Clarke Hughes Murphy Kelly Young Green Hill Stone Price Cook Park Wang Zhao Ali Hassan Mohammed Cohen Levy
    Kaya Demir Sánchez Romero Torres Vargas Mendoza Ferrari Gallo Weber Becker Hoffmann Schäfer Kraus Lindgren Berg
    Dahl Nyström Kovács Szabó Dvořák Marković Jovanović Georgiou Abebe Kamau Mwangi Adeyemi Mbeki Suzuki Yamamoto
    Watanabe Lim Tan Reddy Sharma Gupta Iyer Banerjee Fitzgerald McCarthy Lloyd Evans Cooper Ward Turner Parker Bell
    Abbott Aguilar Alvarez Amato Anderson Aydın Bakker Baranov Barnes Bauer Benítez Bennani Bergman Blanchard Bogdanov
    Bouchard Brandt Braun Burke Cabrera Caldwell Campbell Carvalho Castillo Chapman Chavez Christensen Collins Conti
    Crawford Cruz Cunningham Davies Dawson Delgado Domínguez Doyle Duarte Edwards Ellis Esposito Farkas Ferreira Flores
    Franco Friedman Fuchs Fujimoto Gagnon Gibson Gómez Graham Grant Griffin Gutiérrez Haas Hamilton Harris Hartmann
    Hayashi Hughes Huber Ibrahim Ito Jackson Jenkins Jensen Jiménez Johansson Kamiński Katz Khan Kimura Koch Kozłowski
    Kruger Lambert Larsson Lehmann Leroy Lindholm Lombardi López Mancini Marino Martínez Mazur Meyer Miller Mitchell
    Molina Moreno Morgan Morris Nagy Navarro Neumann Nielsen Nikolaou Obi Oliveira Olsen Owens Pappas Pawlak Perez
    Petersen Phillips Pinto Reyes Reynolds Ricci Rivera Robinson Rodríguez Rogers Roth Ruiz Russell Saito Santoro
    Schmidt Schneider Schwarz Serrano Simpson Sokolov Soto Stewart Stoica Sullivan Svensson Szymański Thomas Tóth
    Tkachenko Urban Vasiliev Vega Vidal Wagner Wallace Watson White Winter Wolf Wright Yamada Zając Zhang
    van~Dijk de~la~Cruz von~Berg da~Costa al-Rashid Ben~Salah García-Márquez Smith-Jones""",
    "held_out": """Albescu Bergström Castellanos D'Angelo Eisenberg Fontaine Gruber Hakimi Iglesias Jørgensen Kuznetsova
    Lehtonen Mahmoud Nakamura Ortiz Pereira Quispe Rasmussen Sørensen Thompson Ueda Vasquez Whitaker Xiong Yeboah
    Zieliński Andersson Björnsson Chaudhry Delacroix Engel Fischer Goldberg Hernández Işık Jankowski Krüger Laurent
    Matsumoto Nkrumah O'Connor Pfeiffer Ramírez Scott Tremblay Vogel Walker Zimmermann Bennett Carter Foster Gray
    Hunter Marsh Wood Bishop Łukasik Ångström van~der~Meer dos~Santos del~Río Ibn~Yusuf Lloyd-Webb Kjær""",
}
WORDS = {
    "train": """north river cloud bright green paper stone blue swift data market garden metro pixel silver harbor
    maple bridge orbit solar prime vector craft field light copper alpine coral delta ember forest granite""",
    "held_out": """willow lantern cobalt thistle ferry quartz meadow saffron pebble beacon juniper tidal walnut
    kestrel amber velvet""",
}
CITIES = {
    "train": """Berlin London Paris Madrid Warsaw Chicago Boston Seattle Mumbai Tokyo Lagos Cairo Lima Bogotá Porto
    Hamburg Lyon Gdańsk Brno Austin Ottawa Sydney Dublin Naples New~York San~Francisco Cape~Town Buenos~Aires Geneva
    Aberdeen Accra Adelaide Amsterdam Ankara Antwerp Athens Atlanta Auckland Baltimore Bangkok Barcelona Basel Beirut
    Belfast Belgrade Birmingham Bologna Bordeaux Brasília Bremen Brighton Bristol Brussels Bucharest Budapest Calgary
    Cardiff Casablanca Cologne Copenhagen Córdoba Dallas Delhi Dresden Düsseldorf Edinburgh Frankfurt Ghent Gothenburg
    Graz Hanover Havana Istanbul Jakarta Karachi Kraków Lausanne Leeds Lille Linz Ljubljana Los~Angeles Lublin Malmö
    Melbourne Memphis Miami Milan Montréal Moscow Munich Nantes Newcastle Nice Odense Orlando Palermo Phoenix Poznań
    Prague Pune Quito Reykjavík Riga Rome Rotterdam Salzburg San~Diego São~Paulo Seoul Seville Singapore Sofia
    Stockholm Stuttgart Tampa Toronto Toulouse Trieste Turin Uppsala Venice Vilnius Wellington Winnipeg Wrocław Zagreb
    Manchester Springfield Valencia Izmir Minsk Tallinn Houston Jackson Lincoln Charlotte~Street Victoria~Park""",
    "held_out": """Vienna Helsinki Zürich Łódź Nairobi Santiago Oslo Marseille Kyoto Denver Perth Cork Leipzig Bilbao
    Novi~Sad Kuala~Lumpur Salt~Lake~City Århus Utrecht Florence Madison Bergamo""",
}
COMPANIES = {
    "train": """Northgate~Logistics Bluefield~Energy~GmbH Acorn~&~Finch Delmar~Foods Orbis~Insurance Kestner~AG
    Pinewood~Software Metro~Transit Harborline~Ltd Solveta Quantrix Brightwater~Bank Greenleaf~Pharmacy Vantiq~Systems
    Corvex~S.A. Stonebridge~University Clearwater~Council Redpoint~Hotels Maple~Street~Dental Zentral~Versand""",
    "held_out": """Larkmere~Bank Tesselmoor~Freight~Ltd Quosh~&~Thorn Harrowgill~Paper~GmbH Pellow~Clinic Velomere~Air
    Dunmarsh~Bakery Skarpfield~Telecom Ostermead~College Wickford~&~Sons Brindle~Analytics~Inc.""",
}
PRODUCTS = {
    "train": """Aurora~Desk TurboMix~300 SmartLock~Pro FieldNotes Router~X2 VoltCharger Lumen~Lamp PixelCam~4
    Office~Suite ErgoChair~Plus Basic~Plan Premium~Plan AirFilter~9 Travel~Mug Galaxy~Tent Backup~Server""",
    "held_out": """NimbusBook~7 Orchid~Kettle QuietFan~20 Starter~Bundle Team~Plan HydroPump~S Terra~Boots EchoBoard
    Winter~Duvet Atlas~Printer""",
}
ROLES = {
    "train": "support billing info sales no-reply hr accounts contact jobs press admin helpdesk orders",
    "held_out": "returns service hello invoices team office security bookings noreply desk",
}
COMMON_WORDS = sorted(
    set(re.findall(r"\b[a-z]{3,}\b", f"{COMMON} {LINE_POOLS} {SHARED} {SUBJECTS} {CONTEXT}"))
)
MONTHS = listed(
    "January February March April May June July August September October November December"
)
WEEKDAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SEPARATORS = [*",;:!?…|/)–.", " -", " /", " |", " &", "...", " ->"]
QUOTES = ["()", '""', "''", "“”", "**", "<>", "«»", "„“", "‘’", "__"]

TEMPLATES = {}
TEMPLATES["train"] = """
# ticket
Please [call|phone|ring] me [back |]at {PHONE} [as soon as you can|before {time}|after {clock}|when you have news].
You can reach me [at|on|under] {PHONE} or [by e-mail at|via|by writing to] {EMAIL}.
My [new|work|private|old] [e-mail|email|e-mail address|mail address] is {EMAIL}[, please update it|, not {EMAIL}|].
I was charged {MONEY} on {DATE} for order {order}[, although I cancelled it| which never arrived|].
On {DATE} I [spoke|talked|had a call] with {PERSON} [from|of|at] your {team}, who [promised|offered] me {MONEY}.
The [invoice|bill|receipt] dated {DATE} [says|shows|lists] {MONEY}[ instead of {MONEY}| but I paid {MONEY}|].
[Our|The] server at {IP} [does not respond|is unreachable|drops connections] since {DATE}[ {time}|].
The [page|site|form|link] {URL} [gives|returns|shows] error {http}[ when I click on it| in every browser|].
[When I open|After visiting|Whenever I reload] {URL}, the screen stays blank.
[Could|Would] {PERSON} [please |]look at this? [She|He] [knows|handled] the case.
{PERSON} ([our|the] {job}) will [be there|come by|meet you] on {DATE} at {time}.
[Please|Kindly] [send|forward|mail] the [contract|report|form] to {EMAIL}[ and copy {EMAIL}|, cc {EMAIL}|].
My [husband|wife|colleague|neighbour|daughter|son|boss] {FIRST} [ordered|bought|returned] the {product} for {MONEY}.
The {product} [broke|stopped working|arrived damaged] on {DATE}, [only|just] {num} days after [I bought it|delivery].
[Mr.|Mrs.|Ms.|Dr.|Prof.|Mr|Herr|Frau|Señora|Mme] {SURNAME} [wrote|said] that [the|a] refund of {MONEY} was on its way.
I [asked|told|wrote to] {PERSON} and {PERSON}, but [neither|nobody] [answered|replied].
Version {version} of the {product} [crashes|hangs] on start[, version {version} was fine|].
Our [network|firewall] blocks {IP} and {IP6}[; please allow both| for some reason|].
The [deposit|fee|fine|rent] of {MONEY} [is due|was due|must be paid] [on|by] {DATE}.
[Between|From] {DATE} [and|to] {DATE} I was [in|travelling through] {city}[ with {FIRST}|].
According to {URL} the [price|fee] is {MONEY}, [yet|but] I paid {MONEY}.
[Sorry|Apologies], my number has changed: {PHONE}[ (mobile)| (office)|, ext. {num}|].
I [moved|am moving] to {street} in {city} on {DATE}.
Contact person: {PERSON}, {job}, [phone|tel.|mobile] {PHONE}, [mail|e-mail] {EMAIL}.
{PERSON}'s account ({EMAIL}) [is locked|was closed|has no access] since {weekday}.
[Who|What kind of person] is {PERSON}? [I got|There was] a call from {PHONE} in {month}.
We [owe|still owe|paid] {PERSON} {MONEY}[ for the {product}| since {DATE}|].
Tracking [says|number] {tracking}, [shipped|sent] {DATE}, [cost|value] {MONEY}.
The warranty [ends|expires|runs out] on {DATE}; [the repair costs|a new one is] {MONEY}.
I [live|work] next to {company} in {city}, [ask for|just ask] {FIRST}.
[Is|Was] {FIRST} still [working|employed] at {company}? [Her|His] mail {EMAIL} bounces.
See [also |]{URL} and {URL} for [details|pictures|the manual].
Login from {IP} ({city}) on {DATE} [was not me|looks strange], [please check|what is this].
My [passport|ID|lease] [is valid|runs] until {DATE}, [born|date of birth] {DATE}.
[Hi|Hello], this is {PERSON} from {company}, [we met|I called] on {weekday}.
[Thanks to|Many thanks to] {FIRST} and {FIRST} for the [quick|kind] help[ on {DATE}|].
If [nobody|no one] answers {PHONE}, try {PHONE} or [write to|ask] {EMAIL}.
{PERSON} [transferred|sent|refunded|donated] {MONEY} to {company}.
The [meeting|appointment|interview] with {PERSON} [is moved|was moved] from {DATE} to {DATE}.
[Ticket|Case|Request] {order} was [opened|closed] by {PERSON} on {DATE}.
A [subscription|licence|membership] costs {MONEY} a [month|year], [that is|so] {MONEY} [in total|for all of us].
The router has the address {IP}, the printer {IP}, [and |]the camera {IP6}.
[Download|Get] the [update|driver] from {URL} ([about|ca.] {num} MB).
My [landlord|manager|doctor] {PERSON} needs the [form|papers] by {DATE}.
I want my {MONEY} back!
Why was {FIRST} [billed|charged] {MONEY}?
[Talk|Speak] to {PERSON}: [she|he|they] [can|will] help.
{PERSON} and I [ordered|tested] {num} pieces of {code}.
No answer from {PERSON} since {DATE}, [what now|please advise]?
I [paid|sent] {MONEY} [by card|in cash|by transfer] to [your|the] {city} branch.
# chat
[hey|hi|yo|hello] {FIRST}[,|] [can|could] you [send|mail] me the [file|slides|link]?
my number is {PHONE}[ btw|, call me|]
[call|text|ring] me [on|at] {PHONE} [pls|later|when ur free|]
[just|i just] paid {MONEY} for [lunch|parking|the tickets] [lol|wow|]
[its|it's] {EMAIL}[ not {EMAIL}|]
[look at|check|see] {URL} [its great|and tell me|]
[ask|ping|tell] {PERSON}[ or {FIRST}|], [she|he] [knows|has it]
party on {DATE} at {clock}, [bring {FIRST}|you coming]?
[did|has] {FIRST} [see|seen|get] the [doc|memo] from {weekday}?
[who|which one] is {PERSON}?
the [box|server|pi] is at {IP}[ port {num}|:{port}|]
[ping|ssh to|try] {IP} [first|and then {IP}|]
[can't|cannot] open {URL} [on my phone|here|], [error|code] {http}
[ok|okay|sure], see you {DATE}[, {time}|]
[thx|thanks|ty] {FIRST}!
{FIRST}: [we need|there's] {MONEY} [left|for the cab|more]
{FIRST} [says|said|thinks] [it's|its] {MONEY}[ each| per person| total|]
[lol|haha] {FIRST} [forgot|lost] [her|his] [keys|phone] [in {city}|again]
i [sent|wired] {MONEY} to {FIRST} [yesterday|on {DATE}|]
mail me [at|:] {EMAIL} [or call {PHONE}|]
anyone [know|got] {PERSON}'s [number|email]?
[bday|birthday] of {FIRST} is {DATE} [right|]?
is {time} ok for {FIRST} and {FIRST}?
{URL}
{PHONE}
{EMAIL}
{PERSON}
{FIRST} and {FIRST} [are in|went to] {city} [this|next] [week|{weekday}]
[bus|train|flight] to {city} [leaves|is] {time}, [costs|only] {MONEY}
[dont|don't] [buy|get] it for {MONEY}, [it was|got mine for] {MONEY} at {company}
@{handle} [have you seen|did you ask] {FIRST}?
updated to {version} [and|now] it [works|crashes]
room {room}, {clock}, [dont|don't] be late
[nah|no], {num}% [off|sure]
my [manager|boss|sis|bro|mom|prof] {FIRST} [says hi|wants it by {DATE}|]
[add|invite] {EMAIL} and {EMAIL} [to the call|pls]
# plain
[Please|Kindly] [let me know|tell me] [what to do next|how to proceed|if you need more].
[The|Our] {product} is [on the list|out of stock|sold out] in {city} [this|next] {weekday}.
The order {order} [contains|has] {num} [items|boxes] of {code} and {qty}.
[Your|The] parcel {tracking} [left|reached] {city} at {time}.
We are in room {room} on the {nth} floor[, next to the lift|].
[Opening hours|We are open] {weekday} to {weekday}, {time}–{time}.
About {percent} of [our|all] customers in {city} [choose|prefer] the {product}.
The update to {version} [fixes|breaks] the [export|login|search].
I am [very |rather |]happy with {company}, the [staff|service] [is|was] great.
{company} [and|or] {company} [may|will] open an office in {city}.
[In|Since|Until] {month} [we|they] [had|saw] {num} [requests|complaints] a [day|week].
[In|Since|Around] {year} {company} [moved|grew|merged] [quickly|to {city}|].
The book has {num} pages, ISBN {isbn}.
My IBAN is {iban}[, the card ends in {last4}|].
The [card|account] ending in {last4} [was|is] blocked.
The file {file} is [missing|broken|empty], so is {path}.
The device {mac} [shows|reports] {percent} [battery|load], [{temp}|{num} hours] since {weekday}.
[Our|The] {team} [answers|works] {247}.
Postcode {zip}, {city}, {street}.
The [table|box] [measures|is] {dims}[ and weighs {weight}|].
Commit {sha} [broke|fixed] the [build|tests] of {code}.
The [result|score] was {score}[ after extra time|, which nobody expected|].
[Maybe|Perhaps] [the|your] [driver|courier] could not find [the door|{street}].
I will [try|wait] [again |]on {weekday} [morning|evening|at {time}].
Serial number {code}, model {product}, [batch|lot] {num}-{num}.
[Can|Could] someone [please |]help? [It is|This is] [quite |really |]urgent.
The [Spanish|German|Polish|French] version [of the manual|] has {num} [errors|mistakes].
[Chapter|Section|Paragraph|Figure] {num}.{num} [explains|covers] the [setup|terms].
Please [quote|mention] reference {order} in [all|your] [letters|mails].
[Good|Bad] [news|luck]: the [train|flight] to {city} was [on time|cancelled].
Press [1|2|3] for {team}, 0 for [the operator|help].
[Only|Nearly|Over] {qty} were [sold|left] [by|in] {month}.
The session {uuid} timed out after {num} seconds.
{weekday} [is|was] a holiday in {city}[, so we are closed|].
[Nothing|Not much] [has changed|happened] since [then|{weekday}|{month}].
Size {num}, [colour|color] {word}, article {code}.
Bus {num} [stops|runs] every {num} minutes near {company}.
The temperature [fell|rose] to {temp} in {city}.
Follow us: @{handle}, #{word}{num}.
Your code is {num}{num}. [Never share it|Do not give it to anyone].
# log
{STAMP} {time:}:{sec} {level} [{word}] [login|session] [failed|opened] for user {user} from {IP}
{STAMP}T{time:}:{sec}Z {level} {word}.{word}: [connection|timeout|request] from {IP}:{port} [closed|accepted|reset]
{IP} - - [{CLF}:{time:}:{sec} +0000] "[GET|POST] {path} HTTP/1.1" {http} {num}
{IP} - {user} [{CLF}:{time:}:{sec} +0200] "GET {path} HTTP/2" {http} {num} "{URL}"
{SYSLOG} {time:}:{sec} {word}{num} sshd[{num}]: Failed password for {user} from {IP} port {port} ssh2
{SYSLOG} {time:}:{sec} {word} kernel: DROP IN=eth0 MAC={mac} SRC={IP} DST={IP} LEN={num}
{level}: could not resolve {URL} ([attempt|try] {num}/5)
[{time:}:{sec}] {level} [mail|smtp] [sent|delivered|queued] to <{EMAIL}> in {num} ms
[{STAMP} {time:}:{sec}] {level} payment of {MONEY} [approved|declined] (order {order})
{level} {word}-api {version} started on [{IP6}]:{port}
{time:}:{sec}.{num} {level} peer {IP6} [left|joined], {num} peers
from={IP} to={EMAIL} status=[sent|bounced] id={uuid}
nameserver {IP}
{IP}	{word}.local
{level} [{uuid}] GET {URL} -> {http} ({num} ms)
ts={STAMP} level={level} msg="[user|account] {EMAIL} [created|deleted]" ip={IP}
{"time": "{STAMP}T{time:}:{sec}", "ip": "{IP}", "user": "{EMAIL}", "ms": {num}}
build {version} commit {sha} [ok|failed] after {num} s
{level} disk /dev/sd[a|b|c] {percent} used on {word}-{num}
PING {IP} ([{word}|host]): 56 data bytes
route add {IP}/24 via {IP} dev eth0
{level} backup {file} [done|skipped], {num} files, {weight}
{STAMP},{order},{EMAIL},{MONEY},{IP}
{level} retrying {path} in {num}s
# invoice
Invoice [no.|number|#] {order}[, {DATE}|]
[Date|Invoice date|Issued]: {DATE}
[Due|Payable by|Due date]: {DATE}
[Bill to|Customer|Sold to]: {PERSON}, {street}, {zip} {city}
[Attn|Attention|Att.]: {PERSON}
{num} x {product} ({code}) [@|at] {MONEY} = {MONEY}
{qty} {product} {MONEY}
{product}, {dims}: {MONEY}
[Shipping|Postage|Delivery]: {MONEY}
[VAT|Tax|Sales tax] ({percent}): {MONEY}
[Total|Sum|Amount due|Balance]: {MONEY}
Discount {percent} [for|on] {product}: -{MONEY}
[Pay|Please pay] to {iban}[, reference {order}|]
[Questions|Help]? {EMAIL} [or|/] {PHONE}
[Pay online|Payment link]: {URL}
Tel. {PHONE} · Fax {PHONE} · {EMAIL} · {URL}
[Ordered|Approved|Handled] by {PERSON} on {DATE}
[Paid|Received] with thanks {MONEY} on {DATE}
{company} · {street} · {city} · Reg. no. {num}{num}
# form
[Name|Full name|Contact|Customer name|Applicant]: {PERSON}
[Phone|Tel|Mobile|Telephone|Cell]: {PHONE}
[E-mail|Email|Mail]: {EMAIL}
[Date of birth|Born|Start date|Date]: {DATE}
[Website|Homepage|Link|URL]: {URL}
[Amount|Price|Budget|Salary]: {MONEY}
[IP|IP address|Host|Client IP]: {IP}
[City|Town|Place]: {city}
[Order|Order no.|Reference]: {order}
[Employer|Company]: {company}
[Version|Product]: {product} {version}
[Room|Desk]: {room}
# greeting
[Dear|Hello|Hi|Good morning] {FIRST},
Dear [Mr.|Mrs.|Ms.|Dr.|Mr|Ms] {SURNAME},
Dear {PERSON},
[Hello|Hi] [team|all|everyone|support],
Dear [Sir or Madam|customer|{company}],
{FIRST},
[Hola|Bonjour|Hallo|Ciao] {FIRST},
# opening
I [write|am writing] [about|regarding] [order {order}|my {product}|the letter of {DATE}].
[I hope|Hope] [you are well|this finds you well].
[As|Like] [agreed|discussed] with {PERSON}[ on {DATE}|], here is [the|my] [summary|list].
[This is|Here is] a [short|quick] note about [{weekday}|{company}|the {product}].
We have not heard from you since {DATE}.
# closing
[Kind|Best|Warm] regards,
[Yours sincerely|Yours faithfully|Best wishes|Thanks|Cheers],
[Thank you|Many thanks] [in advance|and best wishes],
# header
From: {PERSON} <{EMAIL}>
To: {EMAIL}
Cc: {PERSON} <{EMAIL}>, {EMAIL}
[Sent|Date]: {weekday}, {DATE} {time}
Subject: [Re: |Fwd: |][order {order}|{product}|your visit in {city}|payment of {MONEY}]
On {DATE} at {time}, {PERSON} wrote:
# signature
{job}, {company}
{job}
[T|Tel|M|Phone][.|:|] {PHONE}
{EMAIL} | {URL}
{EMAIL}
{street}, {city}
{URL}
"""
TEMPLATES["held_out"] = """
# ticket
Would you mind giving me a ring on {PHONE}? [Evenings suit me best|I am home from {clock}].
Somebody took {MONEY} from my account on {DATE} and it was not me.
According to {PERSON} the [parcel|suitcase] would turn up by {DATE}, yet here I sit.
The quote we got in {city} was {MONEY}; [yours|the new one] comes to {MONEY}.
Whenever we browse to {URL}, Firefox {version} complains about the certificate.
Replies should go to {EMAIL}, because {EMAIL} is [full|switched off].
[Frau|Mr.|Ms.|Dr.|Mrs.] {SURNAME} at the counter in {city} could not find booking {order}.
Nothing reaches {IP} any longer, while {IP} and {IP6} answer within {num} ms.
Since {DATE} my neighbour {PERSON} has been receiving our post, [including a cheque over {MONEY}|sadly].
We tried {PHONE} [twice|five times] and were cut off; {PHONE} just rings.
Your colleague {FIRST} advised me to fill in {URL} before {DATE}.
I was overcharged: {MONEY} rather than {MONEY}, see the statement of {DATE}.
{PERSON} signed for the delivery, [but no such person lives here|whoever that may be].
Strange sign-ins show up: {IP} in {city}, {IP} in {city}, both around {time}.
Please delete everything you hold about {PERSON}, born {DATE}, {EMAIL}.
The mechanic, {PERSON}, wants {MONEY} for [the pump|a part] that costs {MONEY} elsewhere.
For the record: {PERSON} (tel. {PHONE}) witnessed it.
Instructions are at {URL}, only they describe release {version}.
My late uncle {PERSON} held policy {order} until {DATE}.
I will be away until {DATE}; {FIRST} looks after things and can be found at {EMAIL}.
We returned the {product} in {month} and were given {MONEY} of {MONEY} back.
Whoever answers {PHONE} claims to be {PERSON} from {company}.
Our gateway moved from {IP} to {IP} during the night of {DATE}.
Is it true that {PERSON} has left {company}? I owe her {MONEY}.
The cheapest fare I can see on {URL} is {MONEY} one way.
Should anything go wrong, wake {PERSON} [({PHONE})|: {PHONE}].
Half of it, {MONEY}, falls due on {DATE}, the rest a month later.
The summons names {PERSON} and {PERSON} but not me.
# chat
{FIRST}, where are you??
wrong chat sorry, meant for {FIRST}
new phone who dis? save {PHONE}
omg {MONEY} for a sandwich in {city}
could {PERSON} review this before {clock}?
dinner {DATE}? {FIRST} is cooking
found it here {URL} thx
drop a line to {EMAIL} and theyll sort it
i think {FIRST} left {MONEY} on the table
nothing pings on {IP}, is the vpn down
rebooted {IP}, up again since {time}
lost {FIRST}'s address, was it {EMAIL}?
saw {PERSON} at the {city} office, big smile
you got version {version} or {version}?
train gets in {time}, platform {num}
rent is up to {MONEY} from {DATE} 😩
ring {FIRST} first: {PHONE}
any luck with {URL}?
{FIRST} owes {FIRST} {MONEY} lmao
deadline slipped to {DATE}, blame {FIRST}
gotta go, {weekday} works, bring {num} chairs
seat {room}, gate {num}, boarding {clock}
use {EMAIL} for the invite, not my work one
# plain
It rained in {city} all {weekday}, and the {product} leaked.
Nobody at {company} seems to own a calendar.
Lift {digit} skips floor {num} whenever it is warmer than {temp}.
Batch {code} failed inspection, batch {code} passed with {percent}.
Half past {digit} is fine, and so is {time}.
Look under {path} for {file}.
The paperback (ISBN {isbn}) sold {qty} in {year}.
Route {num} via {city} takes {digit} hours and {num} minutes.
Quote file number {order} whenever you write.
Hash {sha} does not match, and neither does {uuid}.
Only the last digits, {last4}, are printed on the slip.
They drew {score} and went home to {city}.
Adapter {mac} keeps losing the signal.
It is {dims}, so it will not fit through the door at {street}.
Funds go to {iban} within {digit} working days.
Firmware {version} came out in {month} and made things worse.
{company} was bought by {company} back in {year}.
Parcel {tracking} is somewhere between {city} and {city}.
Nothing in here is confidential.
The choir sings on {weekday} at {company}, doors open {time}.
Quarter Q[1|2|3|4] closed {percent} above plan.
# log
{STAMP} {time:}:{sec},{num} - {word} - {level} - rejected {IP} after {num} attempts
{level} {STAMP} {time:}:{sec} client={IP}:{port} upstream={IP}:{port} rt=0.{num}
{SYSLOG} {time:}:{sec} gw{num} dhcpd: DHCPACK on {IP} to {mac} via eth{digit}
{SYSLOG} {time:}:{sec} mx postfix/smtp[{num}]: to=<{EMAIL}>, relay={word}[{IP}]:25, status=sent
{IP} {user} [{CLF}:{time:}:{sec} -0500] "HEAD {path}" {http} -
{level} fetch {URL} gave {http}, sleeping {num} s
tcp ESTAB {IP}:{port} {IP}:{port} users:(({user},pid={num}))
listening on [{IP6}]:{port} ({word} {version})
{STAMP}T{time:}:{sec}+02:00 {level} invoice {order} settled: {MONEY} by {EMAIL}
traceroute to {IP}, hop {num}: {IP6} {num} ms
{level} job {uuid} wrote {file} ({weight})
{level} image {word}:{version} pulled, digest {sha}
audit: {EMAIL} changed role of {EMAIL} from {IP}
# invoice
Statement of {DATE}
Prepared for {PERSON}, {company}
Our reference {order}, your contact {PERSON}
Carried forward {MONEY}
{product} ×{num} {MONEY}
Labour {num} h à {MONEY}: {MONEY}
Deposit received {DATE}: {MONEY}
Outstanding as of {DATE}: {MONEY}
incl. {percent} GST {MONEY}
Remit within {num} days to {iban}
Queries to {EMAIL}, phone {PHONE}
Your receipt: {URL}
Late fee after {DATE}: {MONEY}
# form
Your name? {PERSON}
Caller ID: {PHONE}
Reply-to: {EMAIL}
Incident date: {DATE}
Where seen: {URL}
Claimed sum: {MONEY}
Source address: {IP}
Branch: {city}
Policy: {order}
Insurer: {company}
# greeting
Good afternoon {FIRST},
Dear [Prof.|Mr.|Mrs.|Dr.] {SURNAME},
Hey {FIRST}!
To whom it may concern at {company},
Greetings,
{FIRST} –
# opening
Further to our conversation of {DATE}, [I enclose the form|a few points].
{PERSON} suggested that I contact you.
This concerns claim {order}.
It was good to see you in {city}.
Forgive the long silence.
# closing
[With best wishes|All the best|Sincerely],
[Respectfully|Cordially|Take care],
# header
From: "{PERSON}" <{EMAIL}>
Reply-To: {EMAIL}
Bcc: {EMAIL}; {EMAIL}
Date: {weekday}, {DATE}, {time}
Subject: [AW: |][claim {order}|visit of {PERSON}|{company}: reminder]
{PERSON} <{EMAIL}> schrieb am {DATE}:
# signature
{job} | {company}
Direct line {PHONE}
write: {EMAIL}
{URL} – {city}
ph. {PHONE}
"""
Piece = tuple[str, str]  # some text, and the type of entity that it is or ""


class Message(NamedTuple):
    """A text, its entities as (start, end, type) in characters, and the channel that it came by."""

    text: str
    entities: list[tuple[int, int, str]]
    channel: str


def pools(split: str) -> dict[str, list[str]]:
    """The templates of a split by pool."""
    out: dict[str, list[str]] = {}
    for line in TEMPLATES[split].strip().split("\n"):
        if line.startswith("# "):
            out[line[2:]] = lines = []
        else:
            lines.append(line)
    return out


POOLS = {split: pools(split) for split in TEMPLATES}


def plain_ascii(text: str) -> str:
    """Lower-case letters alone, accents taken off."""
    return re.sub(r"[^a-z]", "", unicodedata.normalize("NFKD", text).lower())


class Writer:
    """Draws values and fills templates for one message."""

    def __init__(self, dice: random.Random, split: str):
        self.dice = dice
        self.split = split
        self.training = split == "train"
        self.decks: dict[str, list[str]] = {}

    def pick(self, pool: dict[str, str]) -> str:
        """An item of a word list of this split."""
        return self.dice.choice(listed(pool[self.split]))

    def digits(self, pattern: str) -> str:
        """`pattern` with every # a digit, and every @ a digit from 2 to 9."""
        return re.sub(
            "[#@]", lambda m: self.dice.choice("0123456789" if m[0] == "#" else "23456789"), pattern
        )

    def made_up(self) -> str:
        """A capitalised word of two to four syllables that is no word; in training it may be a name or a town."""
        dice = self.dice
        starts = listed("b br c ch d f g gr h j k kl l m n p r s sh st t tr v w y z")
        middles, ends = listed("a e i o u ai ou é ö"), ["", "", *listed("n r l s ng tt ck v m")]
        count = dice.choice([2, 2, 2, 3, 3, 4])
        return "".join(
            dice.choice(starts) + dice.choice(middles) + dice.choice(ends) for _ in range(count)
        ).title()

    def word(self) -> str:
        """A lower-case word for addresses, paths and file names; in training often any word, or no word."""
        if self.training and self.dice.random() < 0.7:
            return (
                self.dice.choice(COMMON_WORDS)
                if self.dice.random() < 0.5
                else plain_ascii(self.made_up())
            )
        return self.pick(WORDS)

    # Entities

    def first(self) -> str:
        return (
            self.made_up()
            if self.training and self.dice.random() < 0.15
            else self.pick(FIRST_NAMES)
        )

    def surname(self) -> str:
        return (
            self.made_up() if self.training and self.dice.random() < 0.15 else self.pick(SURNAMES)
        )

    def person(self) -> str:
        first, last, initial = self.first(), self.surname(), self.dice.choice("ABCDEFGHJKLMNPRSTW")
        forms = [f"{first} {last}"] * 12 + [
            first,
            f"{first[0]}. {last}",
            f"{first} {initial}. {last}",
        ]
        name = self.dice.choice(
            [*forms, f"{initial}.{first[0]}. {last}", f"{first} {last}".upper()]
        )
        return unicodedata.normalize("NFD", name) if self.dice.random() < 0.02 else name

    def domain(self) -> str:
        """A host name; the held-out ones, which are in files, are reserved for examples (RFC 2606)."""
        dice, one, two = self.dice, self.word(), self.word()
        reserved = dice.choice(
            listed("example.com example.org example.net {}.example {}{}.example {}-{}.test")
        )
        if self.training and dice.random() < 0.75:
            name = dice.choice(
                [one + two, f"{one}-{two}", plain_ascii(self.made_up()), one + self.digits("##")]
            )
            tops = (
                "com com com org net io de fr pl co.uk it es eu dev app edu in br com.au info ch nl"
            )
            top = dice.choice(listed(tops))
            return f"{name}.{top}"
        return dice.choice(["", "", "mail.", "shop.", f"{two}."]) + reserved.format(one, two)

    def email(self) -> str:
        dice = self.dice
        first, last = plain_ascii(self.first()), plain_ascii(self.surname())
        local = dice.choice(
            [
                f"{first}.{last}",
                f"{first[0]}.{last}",
                f"{first}_{last}",
                f"{first}{last}",
                f"{last}.{first}",
            ]
            + [f"{first}{self.digits('##')}", f"{first}+{self.word()}", f"{first[0]}{last}"]
            + [self.pick(ROLES)] * 2
        )
        address = f"{local}@{self.domain()}"
        return dice.choice([address] * 18 + [address.title(), address.upper()])

    def url(self) -> str:
        dice = self.dice
        ported = [f"{name}:{self.plain('port')}" for name in (self.ip(), "localhost")]
        host = dice.choice([self.domain()] * 8 + ported)
        parts = [
            *(self.word() for _ in range(4)),
            *map(self.digits, ("###", "A-@####")),
            "index.html",
            "v2",
        ]
        path = "".join("/" + part for part in dice.sample(parts, dice.choice([0, 1, 1, 2, 3])))
        path += dice.choice(
            ["", "", "", "/" if path else "", "?id=" + self.digits("####"), "#" + self.word()]
        )
        path += f"&{self.word()}={self.digits('#')}" if "?" in path and dice.random() < 0.4 else ""
        start = dice.choice(
            ["https://", "https://", "https://", "http://", "https://www.", "www.", ""]
        )
        if not start and not re.match(
            r"/\w", path
        ):  # a bare host name counts as a URL with a path alone
            start = "https://"
        if host[0].isdigit() or host.startswith("localhost"):
            start = "http://"
        return start + host + path

    def ip(self) -> str:
        private = ["10.#.@.1##", "192.168.@.##", "172.16.#.2#", "10.@#.1#.#", "192.168.1##.1##"]
        reserved = ["192.0.2.1##", "198.51.100.##", "203.0.113.@"]
        public = ["1##.##.1##.@", "@#.1##.@.@#", "20#.@#.#.1##", "@.@.@.@", "8#.24@.##.19#"]
        pattern = self.digits(
            self.dice.choice([*private, *reserved, *(public if self.training else [])])
        )
        return ".".join(str(int(part)) for part in pattern.split("."))

    def ip6(self) -> str:
        dice = self.dice
        top = (
            0x20010DB8
            if not self.training or dice.random() < 0.4
            else 0x20000000 + dice.getrandbits(28)
        )
        tail = dice.getrandbits(96) & dice.choice(
            [0xFFFF, 0xFF, (1 << 96) - 1, 0xFFFF0000FFFF, 0xFFFF << 80 | 0xFFF]
        )
        address = IPv6Address(top << 96 | tail)
        link = f"fe80::{dice.getrandbits(16):x}:{dice.getrandbits(16):x}"
        return dice.choice(
            [address.compressed] * 4 + [address.exploded, link, "::1", address.compressed.upper()]
        )

    def phone(self) -> str:
        """A number; the held-out ones come from ranges that regulators keep for fiction."""
        fiction = """(@##) 555-01##/@##-555-01##/+1 @## 555 01##/1-@##-555-01##/+44 20 7946 0###/020 7946 0###
        07700 900###/+44 7700 900 ###/+33 1 99 00 ## ##/01 99 00 ## ##/06.39.98.##.##/+49 30 23125 ###/(030) 23125-###
        +61 2 5550 ####/0491 570 1##/+1 (@##) 555-01##/@##.555.01##/+4930-23125-###/0049 30 23125 ###"""
        train = """(@##) @##-####/@##-@##-####/+1 @## @## ####/1-800-@##-####/+44 20 #### ####/0@0 #### ####
        07@## ######/+44 7### ### ###/+33 @ ## ## ## ##/01 @# ## ## ##/06.@#.##.##.##/+49 30 #######/(030) @####-##
        +61 2 #### ####/04## ### ###/+1 (@##) @##-####/@##.@##.####/+49 171 #######/0049 89 ######/@##-####
        +48 @## ### ###/@## ### ###/+34 6## ## ## ##/+39 06 #### ####/+91 98### #####/+81 3-####-####/+46 70-### ## ##
        +55 11 9####-####/0171/#######/+86 138 #### ####/+234 80# ### ####/+420 @########/0@@ @@@ ## ##/+1@#########
        (0@@) ######/+41 44 ### ## ##/+31-20-#######/0@##-######/+353 1 ### ####/00 44 20 #### ####/@#########"""
        patterns = re.split(
            r"/|\n\s*", train.replace("0171/#######", "0171#######") if self.training else fiction
        )
        return self.digits(self.dice.choice(patterns))

    def day(self) -> date:
        return date(2019, 1, 1) + timedelta(self.dice.randrange(3600))

    def date(self) -> str:
        d, dice = self.day(), self.dice
        name = dice.choice([MONTHS[d.month - 1]] * 3 + [f"{d:%b}"])
        th = "th" if 10 < d.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(d.day % 10, "th")
        both = [
            f"{d:%Y-%m-%d}",
            f"{d:%d/%m/%Y}",
            f"{d:%m/%d/%Y}",
            f"{d:%d.%m.%Y}",
            f"{d.day} {name} {d.year}",
        ]
        both += [
            f"{name} {d.day}, {d.year}",
            f"{name} {d.day}",
            f"{d.day} {name}",
            f"{name} {d.day}{th}",
        ]
        both += [
            f"{d.day}{th} {name}",
            f"{d.month}/{d.day}/{d:%y}",
            f"{d.day}{th} of {name} {d.year}",
        ]
        both += [f"{d.day}{th} of {name}", f"{d.day}.{d.month}.{d.year}"]
        train = [
            f"{d:%d-%m-%Y}",
            f"{d:%Y/%m/%d}",
            f"{d.day}-{d:%b}-{d:%y}",
            f"{d.day} {name} '{d:%y}",
            f"{d:%d %b %Y}",
        ]
        held_out = [
            f"{d.day}. {name} {d.year}",
            f"{name} {d.day} {d.year}",
            f"{d:%d.%m.%y}",
            f"{name} {d.day}{th}, {d.year}",
        ]
        return dice.choice(both * 2 + (train if self.training else held_out))

    def stamp(self) -> str:
        return f"{self.day():%Y-%m-%d}"

    def money(self) -> str:
        dice = self.dice
        whole, cents = (
            int(10 ** dice.uniform(0.3, 5.2)),
            dice.choice([f"{dice.randrange(100):02}", "00", "99", "50"]),
        )
        us, eu = f"{whole:,}", f"{whole:,}".replace(",", dice.choice([".", " ", "\u00a0", "'"]))
        us, eu = (
            dice.choice([us, f"{us}.{cents}", f"{us}.{cents}", str(whole)]),
            dice.choice([eu, f"{eu},{cents}"]),
        )
        sign = dice.choice("$$$€€££¥₹") if self.training else dice.choice("$€£$€£₩")
        codes = "USD EUR GBP CHF SEK JPY AUD CAD PLN INR" if self.training else "USD EUR NOK CHF"
        code = dice.choice(listed(codes))
        word = dice.choice(
            [
                "dollars",
                "euros",
                "pounds",
                "euro",
                "bucks",
                "francs",
                "yen",
                "rupees",
                "cents",
                "zloty",
            ]
        )
        forms = [f"{sign}{us}"] * 6 + [
            f"{sign} {us}",
            f"{eu} €",
            f"{eu}€",
            f"{code} {us}",
            f"{us} {code}",
            f"€ {eu}",
        ]
        forms += [
            f"{eu} {code}",
            f"{us} {word}",
            f"US${us}",
            f"{sign}{dice.randrange(1, 90)}k",
            f"{eu} kr",
        ]
        forms += [f"{sign}{dice.randrange(1, 99) / 10} [million|m|bn|billion]", f"{whole} {word}"]
        forms += (
            ["C$" + us, f"A${us}", f"{eu} zł", f"CHF {us}"]
            if self.training
            else ["CA$" + us, f"{eu} Kč", f"NZ${us}"]
        )
        return self.choose(dice.choice(forms))

    # What must not be taken for an entity

    def plain(self, slot: str) -> str:
        """The value of a lower-case slot."""
        dice, d = self.dice, self.digits
        if slot in ("city", "company", "product") and self.training and dice.random() < 0.5:
            kind = {
                "city": [""],
                "product": [" 3", " Pro", " X", ""],
                "company": [" Ltd", " GmbH", " Inc.", " Bank", ""],
            }
            return self.made_up() + dice.choice(kind[slot])
        generators = {
            "city": lambda: self.pick(CITIES),
            "company": lambda: self.pick(COMPANIES),
            "product": lambda: self.pick(PRODUCTS),
            "street": lambda: self.word().title() + d(dice.choice([" Street @#", "weg @", " Road @##"])),
            "team": lambda: dice.choice(["Support Team", "help desk", "Billing", "Customer Care", "sales team"]),
            "job": lambda: dice.choice(["Head of Sales", "engineer", "Project Manager", "nurse", "Accountant", "CTO"]),
            "version": lambda: d(dice.choice(["@.@.1", "v@.#", "v1.2#.@", "20@#.@", "@.1#.#-rc@", "v@.@.1#.@"])),
            "order": lambda: d(dice.choice(["#@####", "A-@####", "INV-202#-0@#", "@#######", "PO @##/#", "RX@#-##"])),
            "tracking": lambda: d(dice.choice(["1Z @@# AA1 ## #### ###", "00340@##########", "RR@########DE"])),
            "time": lambda: d(dice.choice(["1#:@0", "0@:15", "@:45", "1@.30", "1@:05"])),
            "clock": lambda: d(dice.choice(["@ pm", "@pm", "1#:30 am", "@:15 p.m.", "1# o'clock", "noon"])),
            "time:": lambda: f"{dice.randrange(24):02}:{dice.randrange(60):02}",
            "sec": lambda: f"{dice.randrange(60):02}",
            "percent": lambda: d(dice.choice(["@#%", "@.# %", "0.@%", "@@ percent", "99.9%"])),
            "room": lambda: d(dice.choice(["@0#", "B-1##", "@.1#", "C@##", "1#A"])),
            "code": lambda: d(dice.choice(["PX-@###-##", "@##-AB", "KL@#.##", "XR@##", "M@x##", "@#-@#-@#"])),
            "num": lambda: str(int(10 ** dice.uniform(0.3, dice.choice([1.3, 1.3, 3.2])))),
            "digit": lambda: d("@"),
            "port": lambda: d(dice.choice(["@#", "80@#", "4@##", "5####"])),
            "http": lambda: dice.choice(["200", "301", "403", "404", "500", "502", "503"]),
            "qty": lambda: d(dice.choice(["@,### units", "@# pcs", "@00 copies", "@ dozen", "@.### Stück", "1/2 box"])),
            "nth": lambda: dice.choice(["2nd", "3rd", "4th", "first", "12th"]),
            "month": lambda: dice.choice(MONTHS),
            "weekday": lambda: dice.choice(WEEKDAYS),
            "year": lambda: d(dice.choice(["19@#", "201#", "the 19@0s", "2025/26"])),
            "isbn": lambda: d(dice.choice(["978-3-16-@#####-#", "978@#########", "0-@##-#####-X"])),
            "iban": lambda: d(dice.choice(["DE@# #### #### #### #### ##", "GB@# ABCD #### #### ####", "PL@#########"])),
            "last4": lambda: d("@###"),
            "mac": lambda: ":".join(f"{dice.randrange(256):02x}" for _ in range(6)),
            "temp": lambda: d(dice.choice(["@#°C", "-@ °C", "@#°F", "@#.# degrees"])),
            "247": lambda: dice.choice(["24/7", "9-5", "day and night", "from 8 to 18"]),
            "zip": lambda: d(dice.choice(["@####", "SW1A @AA", "0@-###", "K@A #B@"])),
            "dims": lambda: d(dice.choice(["@# x @# cm", "1.@ m × 0.@ m", "@#x@#x@#"])),
            "weight": lambda: d(dice.choice(["@# kg", "@.# GB", "@00 g", "1#,@ t"])),
            "sha": lambda: f"{dice.getrandbits(40):010x}"[: dice.choice([7, 10])],
            "uuid": lambda: f"{dice.getrandbits(32):08x}-{dice.getrandbits(16):04x}-4{dice.getrandbits(12):03x}",
            "score": lambda: d(dice.choice(["@-1", "@:@", "@.5/10", "3–2"])),
            "file": lambda: f"{self.word()}{d('_@#')}.{dice.choice(['pdf', 'csv', 'log', 'docx', 'tar.gz'])}",
            "path": lambda: f"/{self.word()}/{self.word()}" + dice.choice(["", "/", ".json", ".log", "/v2"]),
            "handle": lambda: self.word() + dice.choice(["", "_hq", "team", d("@#")]),
            "user": lambda: dice.choice(["root", "admin", "deploy", "guest", "svc_" + self.word(), "-"]),
            "word": lambda: self.word(),
            "level": lambda: dice.choice(["INFO", "WARN", "ERROR", "DEBUG", "info", "warning", "error"]),
        }  # fmt: skip
        return generators[slot]()

    # Templates and messages

    def choose(self, template: str) -> str:
        """`template` with its wordings chosen, from the inside out."""
        while found := CHOICE.search(template):
            template = (
                template[: found.start()]
                + self.dice.choice(found[1].split("|"))
                + template[found.end() :]
            )
        return template

    def entity(self, slot: str) -> str:
        """The value of an upper-case slot."""
        d = self.day()
        if slot in ("CLF", "SYSLOG"):
            return f"{d:%d/%b/%Y}" if slot == "CLF" else f"{d:%b} {d.day:2}"
        if slot == "IP" and self.dice.random() < 0.15:
            slot = "IP6"
        return getattr(self, slot.lower())()

    def fill(self, template: str, prose: bool = True) -> list[Piece]:
        """The pieces of a template; in prose an entity may stand in brackets or quotes."""
        out: list[Piece] = []
        text = self.choose(template).replace("{time:}", "{time_}")
        for i, part in enumerate(SLOTS.split(text)):
            if i % 2 == 0:
                out.append((part, ""))
            elif part.islower() or part.isdigit() or part == "time_":
                out.append((self.plain(part.replace("_", ":")), ""))
            else:
                kind = "DATE" if part in ("CLF", "SYSLOG") else TYPE_OF_SLOT.get(part, part)
                left, right = (
                    self.dice.choice(QUOTES) if prose and self.dice.random() < 0.05 else ("", "")
                )
                out += [(left, ""), (self.entity(part), kind), (right, "")]
                if self.training and self.dice.random() < 0.12:
                    out.append((self.dice.choice(SEPARATORS), ""))
        return out

    def reworded(self, pieces: list[Piece]) -> list[Piece]:
        """In training: `pieces` with some words outside entities exchanged for others, or for made-up ones.

        The templates have few words and the world has many: an unknown word must not look like a name for that.
        """
        dice, share = self.dice, self.dice.choice([0, 0.1, 0.3, 0.5])

        def other(found: re.Match) -> str:
            if dice.random() >= share:
                return found[0]
            word = dice.choice(COMMON_WORDS) if dice.random() < 0.6 else self.made_up().lower()
            return (
                word.upper()
                if found[0].isupper()
                else word.title()
                if found[0][0].isupper()
                else word
            )

        return [
            (text if kind else re.sub(r"[^\W\d_]{3,}", other, text), kind) for text, kind in pieces
        ]

    def line(self, pool: str) -> list[Piece]:
        """A filled template of `pool`: none comes again before all have been used."""
        if not self.decks.get(pool):
            self.decks[pool] = self.dice.sample(
                POOLS[self.split][pool], len(POOLS[self.split][pool])
            )
        return self.fill(self.decks[pool].pop(), prose=pool in ("ticket", "chat", "plain"))

    def lines(self, pool: str, low: int, high: int) -> list[Piece]:
        """Between `low` and `high` lines of `pool`, each with its end of line."""
        return [
            p for _ in range(self.dice.randint(low, high)) for p in [*self.line(pool), ("\n", "")]
        ]

    def sentences(self, low: int, high: int) -> list[Piece]:
        """A paragraph: sentences with and without entities."""
        kinds = [
            self.dice.choice(["ticket", "ticket", "plain"])
            for _ in range(self.dice.randint(low, high))
        ]
        joined = [
            p
            for kind in kinds
            for p in [*self.line(kind), (self.dice.choice(["  ", " ", " ", " "]), "")]
        ]
        return [*joined[:-1], ("\n", "")]

    def chat(self) -> list[Piece]:
        dice, out = self.dice, []
        speakers = [self.first(), self.first()] if dice.random() < 0.4 else []
        stamped = dice.random() < 0.3
        lowered = dice.random() < 0.45
        for turn in range(dice.choice([1, 1, 2, 3, 4, 6])):
            said = [*self.line("chat" if dice.random() < 0.8 else "plain")]
            said = [(text.lower(), kind) for text, kind in said] if lowered else said
            head = [("[" + self.plain("time:") + "] ", "")] if stamped else []
            head += [(speakers[turn % 2], "PERSON"), (": ", "")] if speakers else []
            smile = (
                " " + dice.choice("🙂😅👍🎉🙏😂") * dice.choice([1, 1, 3])
                if dice.random() < 0.2
                else ""
            )
            out += [*head, *said, (smile + "\n", "")]
        return out

    def ticket(self) -> list[Piece]:
        form = self.lines("form", 1, 5) if self.dice.random() < 0.3 else []
        return [
            *form,
            *self.sentences(1, 5),
            *(self.sentences(1, 3) if self.dice.random() < 0.2 else []),
        ]

    def email_message(self) -> list[Piece]:
        dice = self.dice
        head = [*self.lines("header", 1, 4), ("\n", "")] if dice.random() < 0.5 else []
        body = [
            p for _ in range(dice.choice([1, 1, 2, 3])) for p in [*self.sentences(1, 4), ("\n", "")]
        ]
        return [*head, *self.letter_head(), *body, *self.farewell()]

    def letter(self) -> list[Piece]:
        dice = self.dice
        address = [
            (self.person(), "PERSON"),
            (f"\n{self.plain('street')}\n{self.plain('zip')} {self.plain('city')}\n", ""),
        ]
        place = [(f"{self.plain('city')}, ", "")] if dice.random() < 0.6 else []
        when = [*place, (self.date(), "DATE"), ("\n\n", "")]
        body = [p for _ in range(dice.randint(2, 4)) for p in [*self.sentences(2, 5), ("\n", "")]]
        return [
            *(address if dice.random() < 0.7 else []),
            *when,
            *self.letter_head(),
            *body,
            *self.farewell(),
        ]

    def letter_head(self) -> list[Piece]:
        """Greeting and first sentence."""
        return [
            *self.line("greeting"),
            ("\n\n", ""),
            *(self.line("opening") if self.dice.random() < 0.6 else []),
            ("\n", ""),
        ]

    def farewell(self) -> list[Piece]:
        """Closing, name and signature."""
        name = self.first() if self.dice.random() < 0.35 else self.person()
        return [
            *self.line("closing"),
            ("\n", ""),
            (name, "PERSON"),
            ("\n", ""),
            *self.lines("signature", 0, 4),
        ]

    def log(self) -> list[Piece]:
        return self.lines("log", 1, 8)

    def invoice(self) -> list[Piece]:
        return [*self.line("invoice"), ("\n", ""), *self.lines("invoice", 2, 9)]

    def long_thread(self, words: int) -> list[Piece]:
        """A thread of letters, e-mails and logs of about `words` words."""
        out: list[Piece] = []
        while sum(len(text.split()) for text, _ in out) < words:
            out += [
                *self.dice.choice([self.letter, self.email_message, self.ticket, self.log])(),
                ("\n---\n\n", ""),
            ]
        return out


LAYOUTS = {
    "ticket": 5,
    "chat": 5,
    "email_message": 3,
    "letter": 1,
    "log": 3,
    "invoice": 2,
}  # and how often each


def message(seed: int, split: str, words: int | None = None) -> Message:
    """The message of a seed in a split, "train" or "held_out"; with `words` a thread of about so many."""
    dice = random.Random(f"{split} {seed}")
    writer = Writer(dice, split)
    channel = (
        dice.choices(list(LAYOUTS), list(LAYOUTS.values()))[0] if words is None else "email_message"
    )
    pieces = getattr(writer, channel)() if words is None else writer.long_thread(words)
    if writer.training:
        pieces = writer.reworded(pieces)
    if dice.random() < 0.1:
        pieces = [(text.replace("\n", "\r\n"), kind) for text, kind in pieces]
    while pieces and not pieces[-1][0].strip():
        pieces.pop()
    pieces[-1] = (pieces[-1][0].rstrip(), pieces[-1][1])
    text, entities = "", []
    for part, kind in pieces:
        if kind:
            entities.append((len(text), len(text) + len(part), kind))
        text += part
    return Message(text, entities, channel.removesuffix("_message"))


def corpus() -> pa.Table:
    """The sample corpus of the tag job, bad rows included."""
    rows: list[tuple[str, bytes | None]] = []
    for number in range(1, ROWS + 1):
        if number in BAD_ROWS:
            rows.append(("ticket", BAD_ROWS[number]))
            continue
        sample = message(number, "held_out", LONG_WORDS if number in (120, 260) else None)
        rows.append((sample.channel, sample.text.encode()))
    unchecked = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)
    texts = pc.cast(pa.array([text for _, text in rows], pa.binary()), options=unchecked)
    return pa.table([pa.array([channel for channel, _ in rows]), texts], ["channel", "text"])


def main() -> None:
    pq.write_table(corpus(), HERE / "messages.parquet", row_group_size=64, compression="zstd")
    with (HERE / "held_out_messages.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for seed in range(1_000_000, 1_000_300):
            text, entities, _ = message(seed, "held_out")
            file.write(json.dumps({"text": text, "entities": entities}, ensure_ascii=False) + "\n")
    for name in ("messages.parquet", "held_out_messages.jsonl"):
        print(f"{HERE / name}: {(HERE / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
