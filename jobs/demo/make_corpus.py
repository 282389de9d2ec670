"""Writes the sample corpus: 1,000 made-up requests to an assistant, one Parquet file beside this script.

Every document is about one of the CLINC150 intents (or none of them) and is put together from the templates below:
``[a|b]`` chooses one wording, ``{slot}`` is a word that stays the same through a document, ``{slot+}`` a new one, and a
template that begins with ``!`` is used once in a document at most.
Six rows are bad on purpose: two nulls, two blank texts and two whose bytes are not valid UTF-8.

    python jobs/demo/make_corpus.py
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SEED = 2026
SUNDAY = 6
OUTPUT = Path(__file__).with_name("requests.parquet")
ROWS = 1000
LIMITS = {
    20: (5, 30),
    100: (40, 150),
    700: (200, 700),
    2500: (800, 2500),
    9999: (2600, 5400),
}  # words wished: allowed
BAD_ROWS: dict[int, bytes | None] = {
    97: None,
    268: b"",
    431: "Could you move our table at the café by the harbor to eight?".encode("latin-1"),
    588: b" \n\t ",
    742: None,
    903: "never mind, i found the ticket, thanks for looking 🙂".encode()[:-1],
}

WORDS = """
name: Zoë / Anouk / Tobias / Ravindra / Ngozi / José / Marisol / Håkon / Leilani / Piotr / Renée / Bronwen / Yusuf /
    Maud
surname: Brackwater / Tolverne / Quillfeather / Arrubaldi / Ostermead / Vandrel / Pemberlow / Lindqvale / Marquésa
agent: Ilse / Dorian / Petra / Kwame / Solveig / Mateo / Hana / Gwen / Osric / Farida / Linus / Beatriz / Tamsin / Émile
city: Lisbon / Kraków / Toronto / Nairobi / São Paulo / Osaka / Denver / Leeds / Montréal / Zürich / Málaga / Boise /
    Bergen
country: Portugal / Kenya / Japan / Brazil / Vietnam / Iceland / Morocco / Peru / India / New Zealand / Poland
lang: Portuguese / Polish / Japanese / Swahili / Spanish / Dutch / French
currency: yen / Swiss francs / zloty / Brazilian reais / Norwegian kroner / Canadian dollars
bank: Larkmere Bank / Brindlewick Credit Union / Pellow Bank
firm: Harrowgill Paper / the Dunmarsh bakery / Tesselmoor Logistics
airline: Velomere Air / Skarpfield Airways
shop: Quosh & Thorn / Bramblecart / Homewick Goods
place: the Wobbly Ladle / Casa Tramontil / Nonna Brizzi's / the Gilded Turnip / Sesame Lantern
dish: lentil soup / mushroom lasagna / vegetable curry / plum cake / fish stew / potato gratin / crème brûlée / chicken
    pie
bake: mushroom lasagna / potato gratin / spinach quiche / chicken pie / plum cake / apple strudel
band: the Paper Otters / Velvet Kettle / Marimba Sundays
street: 14 Juniper Lane / 220 Foxglove Street / 7 Old Mill Road / 61 Tannery Row
item: oat milk / rye bread / olive oil / birthday candles / cat litter / basil
weekday: Monday / Tuesday / Wednesday / Thursday / Friday / Saturday / Sunday
few: two / three / four / five / six
nth: third / fourth / fifth / sixth
clock: 9:10 am / 10:25 am / 11:40 am / 1:15 pm / 2:50 pm / 3:35 pm / 4:20 pm / 5:05 pm
early: 5:50 am / 6:15 am / 6:40 am / 7:05 am / 7:20 am
evening: 6:30 pm / 7 pm / 7:45 pm / 8:15 pm
"""

LINES = """
# banking
transfer: [Move|Shift|Please send] {amount} from [savings to checking|checking to savings] [by {weekday}|before noon]
balance: How much money is [left|sitting] in my {bank} [savings|checking] account [this morning|now the rent is out]
freeze_account: [Freeze|Put a freeze on] my {bank} account [right away|this minute], [{name} knows my password|please]
transactions: [List|Show me] the last {few} [purchases|payments] on my {bank} [debit card|account], newest first
pay_bill: [Go ahead and pay|Please pay] the [water|phone|internet] bill of {price} [from checking|before it is late]
spending_history: How much [have I spent|did I spend] on [coffee|books|cat food] [since {past}|in the last {few} months]
bill_due: [By which date must I pay|What is the deadline for paying] my [electric|dentist] bill [this month|this time]
routing: Which routing number [do I put|goes] on [the form|a landlord's form] for my {bank} [checking|savings] account
pin_change: I [keep forgetting|never liked] the PIN of my {bank} card, how [can|do] I [set a new one|pick another one]
account_blocked: Why [can't I get into|is there suddenly a block on] my {bank} account, [my rent bounced|I am stuck]
report_fraud: [Somebody|Some stranger] used my [card|account] to buy {price} worth of [sneakers|vouchers], this is fraud
min_payment: What is the [smallest|lowest] payment I can make on my [car loan|{bank} card] this month [please|]
interest_rate: How much interest [does|will] my {bank} [savings account|fixed deposit] [earn|pay] [this year|now]
bill_balance: How [high|big] is [our heating|the electric|my internet] bill [this month|now that {name} has moved in]
order_checks: I have [one check left|run out of checks], please [mail|send] a new checkbook to [{street}|my home]
# credit_cards
improve_credit_score: How can I [raise|bring up] my credit score [before we buy a house|after a late payment]
replacement_card_duration: How [many days|long] until the replacement card [you promised|from {past}] gets to {city}
application_status: [Any decision yet on|Is there news about] the {bank} credit card I [applied for|asked for] on {past}
rewards_balance: How many [points|miles] have I [built up|collected] on my {bank} [travel|gold] card [so far|this year]
credit_score: [Look up|Tell me] my credit score, [the landlord wants to see it|I have not checked it since {month}]
new_card: I would like to apply for a [travel|student] credit card with {bank}, [where do I start|how do I do that]
apr: What APR [am I paying|applies] on my {bank} [gold|student|travel] card [now the offer is over|if I carry a balance]
report_lost_card: I lost my [credit|debit] card [at the pool|somewhere in {city}], please [report it|mark it as lost]
damaged_card: [The dog chewed|My son snapped|I melted] my {bank} card and [the chip is cracked|no machine will read it]
credit_limit: [How high does the limit go|What credit limit do I have] on my {bank} [gold|travel|student] card
international_fees: [Do you add|Will there be] a [foreign|transaction] fee [when|if] I use my {bank} card in {country}
credit_limit_change: Please [raise|increase] the credit limit on my {bank} card to {amount}[, I got a raise|]
redeem_rewards: I want to [turn|convert] my [card|reward] points into [a gift card|a flight], I have about {points}
expiration_date: [Until which month is my {bank} card valid|When does my {bank} card expire], the print is gone
card_declined: My card was [refused|declined] at [{shop}|a café in {city}] [on {past}|twice today], [why|how come]?
# kitchen_and_dining
restaurant_reservation: [Book|Reserve|Get us] a table for {few} at {place} on {weekday} at {evening} [please|, inside]
confirm_reservation: [Double-check|Make sure] that {place} still has [us|our {few}] down for {weekday} at {evening}
restaurant_suggestion: Where can [we|I] eat good [Korean|vegan] food in {city} [with kids|without spending a fortune]
nutrition_info: [How much fiber and salt is|How much protein is|Which vitamins are] in a [bowl|plate|helping] of {dish}
food_last: How [long|many days] [does|will] [opened hummus|cooked rice|leftover {dish}|smoked trout] keep in the fridge
cook_time: How [long|many minutes] does [my|one big] {bake} need in the oven [at 350 degrees|if it serves {few}]
ingredient_substitution: I am out of [butter|cumin|sour cream|eggs], what can I use [instead|for it] in [a|my] {dish}
calories: How many calories [are in|should I count for] [a small|one] portion of {dish} [made at home|at {place}]
restaurant_reviews: [How good are the reviews of|Is it true that people rave about] the {dish} at {place}
how_busy: How [crowded|full|busy] will {place} be on {weekday} around {evening}, [do we have to wait|is there a line]
accept_reservations: Does {place} take reservations for [{weekday} lunch|the terrace], or do we just [show up|walk in]
ingredients_list: [Which ingredients do I need for|What do I have to buy for] a [proper|classic|vegan] {dish}
cancel_reservation: [Cancel|Please call off] [our|the] table at {place} on {weekday}, [the sitter is ill|we are sick]
meal_suggestion: [Suggest a dinner|Give me an idea for supper] [that is ready in half an hour|a fussy child will eat]
recipe: [How do I make|Could you walk me through making] a [simple|really good] {dish} [from scratch|for {few} people]
# home
shopping_list_update: Put {item} and [two lemons|a bag of rice] on [my|our] shopping list [please|for {weekday}]
next_song: [Next track please|Not this song again, play the next one], [it is too slow|we had it an hour ago]
todo_list_update: [Put|Write] [descaling the kettle|the library books|the broken gutter] on my to-do list for {weekday}
reminder: [What reminders have I set|Which reminders are coming up] [this week|for {weekday}|before {soon}]
calendar: [What is on my calendar|Have I got anything in my calendar] [on {weekday} afternoon|in the week of {soon}]
reminder_update: [Remind me|Set a reminder] [on {weekday}|on {soon}] to [water {name}'s ferns|renew the parking permit]
todo_list: What is [still open|left] on my to-do list [for today|before {weekday}|now that the laundry is done]
order_status: Where is my {shop} order {order}, it [was due on {past}|should be here by now|cost me {price}]
what_song: What is [the name of|] [this song|the tune] [playing in the kitchen|they play in this café]
smart_home: [Dim the bedroom lights|Turn up the heating|Switch on the porch light] [at {evening}|before I get home]
shopping_list: [Which groceries are|What have we got] on [the|our] shopping list [so far|, I am at {shop} now]
play_music: [Play|Put on] [the first album by {band}|some calm guitar music] [while I cook|until {evening}]
calendar_update: [Put|Enter] [the dentist|parents' evening|lunch with {name}] in my calendar for {soon} at {clock}
update_playlist: [Add|Save] [this track|the last song] by {band} to my [running|Sunday morning|road trip] playlist
order: [Order|Buy] {few} [boxes of dishwasher tablets|bags of {item}] from {shop}, [not over {price}|same as before]
# auto_and_commute
oil_change_how: How do I [change|drain and refill] the engine oil in [an old van|a hatchback] [at home|without a lift]
distance: How [many miles|far] is it from {city} to the [coast|next town|nearest lake] [by car|if I avoid the toll road]
mpg: How many miles per gallon does my [van|hatchback|pickup] get [on the highway|in town|with a roof box]
oil_change_when: When [should|must] I book an oil change, [the last one was in {month}|it has been {points} miles]
tire_pressure: [Is there enough air|What is the pressure] in my [rear|front] tires [after that cold night|right now]
uber: [Get|Call|Book] me a ride-share car [to the {city} airport|home from {place}] [for {few} people|at {evening}]
schedule_maintenance: [Book my car in|Make me an appointment] for [a service|a tune-up] at the garage on {soon}
gas_type: [Which fuel|What grade of gas] goes into [a rented minivan|my 2015 hatchback], is [regular|premium] okay?
tire_change: How [many more miles|much longer] before my tires need replacing, they were new [in {month}|last year]
last_maintenance: When was my [car|van] last [at the garage|seen by a mechanic], [was it in {month}|I lost the booklet]
current_location: [What street am I on|Which town is this], [the signs are in {lang}|I got off at the wrong stop]
directions: How do I get from {street} to [the library|{place}|the ferry terminal] [on foot|by bus|by bike]
gas: How much [fuel|gas] is left in my tank, [can I make it to {city}|should I stop before {city}]
jump_start: My [car battery|van battery] is flat at the [campsite|office], how do I jump start it from {name}'s car
traffic: [How bad is the traffic|Are there any jams] on [the harbor bridge|the road to {city}] [this morning|now]
# travel
translate: How do you say ["where is the pharmacy"|"my sister cannot eat nuts"|"the room is too loud"] in {lang}
travel_alert: Are there any [safety|travel] warnings for {country} [this month|at the moment|before we go on {soon}]
flight_status: Is {airline} flight {flight} [to {city}|from {city}] [still on time|delayed], my [mother|son] is on it
timezone: Which time zone [is {city} in|do I pick for {city}|should I set my watch to in {city}]
lost_luggage: My [cello case|stroller] [never arrived|got lost] in {city} after flight {flight}, who is looking for it
travel_suggestion: What [should we see|is worth doing|can we do] in {city} [with two teenagers|on a rainy weekend]
carry_on: [May|Can] I take [a ukulele|two small backpacks|a folding stroller] as carry-on with {airline}
travel_notification: Please note that I will be in {country} from {soon} [for {few} weeks|and will pay by card there]
plug_type: Which [plug|adapter] do I need [for my laptop|for a hair dryer|to charge my phone] in {country}
exchange_rate: How many {currency} [do I get|will I get] for {amount} [today|if I change it at the airport]
book_hotel: [Find|Book] me a [cheap|family] hotel room in {city} from {soon} for {few} nights [please|near the station]
international_visa: Do I need a visa [to enter|for] {country} [for a {few}-week visit|if I only change planes]
vaccines: Which [shots|vaccinations] are advised before [a trip to|travelling to] {country} [with a toddler|next month]
book_flight: [Find|Book] me a flight from {city} to {city+} on {soon} [for under {amount}|with an aisle seat]
car_rental: I [want|would like] to rent [a van|an automatic] in {city} [from {soon}|for {few} days starting {soon}]
# utility
timer: [Start|Set] a [12|25|40] minute timer for [the eggs|my stretches|the bread dough] [please|, I always forget]
definition: What does [the word|] ["ephemeral"|"gubernatorial"] mean, [it was in a letter|they said it on the radio]
find_phone: Help me find my phone, [it is somewhere in the sofa|I had it in the garden a minute ago|please make it ring]
time: What time is it [in {city} right now|over in {city}], [is it too late to call {name}|they may be asleep]
flip_coin: [Toss|Flip] a coin for us, [heads we order in, tails we cook|heads I go running|we cannot agree on a film]
calculator: What is [17 percent of 240|438 divided by 12|1,299 minus 385], [my head is empty|I have no paper]
date: [What date do I write|What date do we have] today, [I am filling in a form|I have lost track|it is for a check]
roll_dice: Roll [two six-sided dice|three dice|a ten-sided die] for [our board game|{name}'s turn|me please]
make_call: [Call|Phone] [{name}|the school office|my cousin {name}] [and put it on speaker|please, my hands are wet]
alarm: [Set an alarm for|Wake me at] {early} on {weekday}, [I have an early train|the plumber is coming]
measurement_conversion: How many [grams are in six ounces|miles is 40 kilometers], [roughly|more or less]
weather: [Will it rain|Do I need a warm coat|Is it going to snow] in {city} [on {weekday}|tomorrow morning|this weekend]
spelling: How do you spell ["rhododendron"|"maneuver"|"camaraderie"], [I am writing a card|spellcheck is no help]
text: [Text|Send a text to] {name} [and say|saying] that [I am ten minutes late|the keys are under the pot]
share_location: Share my location with {name} [for the next hour|so we can find each other|until I am home]
# work
insurance_change: I want to [switch|change] my [health plan|dental insurance] to another insurer, [how|what now]?
pto_request: [I would like to take|Please put me down for|Can I request] [{few} days|a week] of vacation from {soon}
payday: [On which day|When] [does the next|will this month's] paycheck [arrive|come], the rent is [waiting|due]
rollover_401k: How do I [roll|move] my 401k from [my last job|{firm}] into [the new plan|an IRA] [please|]
pto_request_status: Has [my manager|HR|{name}] approved my vacation request [for {soon}|from {past}] yet
insurance: Does my health insurance at work cover [glasses|physiotherapy|a root canal|braces for my daughter]
pto_used: How many [vacation days|days off] have I already [taken|used up] [this year|since {month}]
w2: [Where do I download|When will I get] my W-2 [from {firm}|for last year], [my accountant is asking|I can't find it]
schedule_meeting: Set up a [30 minute|one hour] meeting with {name} [and {name+}|] on {weekday} at {clock} [please|]
next_holiday: [When is|How long until] the next [public|company] holiday, [I want a long weekend|I need a break]
meeting_schedule: [What|How many] meetings do I have on {weekday} [and where|before lunch|with {name}]
taxes: How much [income|state] tax will I [owe|have to pay] [on {amount}|for this year|if I earn {amount} extra]
pto_balance: How many vacation days do I [still have|have left] [for the rest of the year|until they expire]
direct_deposit: How do I [get|have] my [wages|paycheck] deposited directly into my {bank} [account|checking account]
income: [How much do I earn|What is my salary|What do I make] [per month|per pay period] before [deductions|taxes]
# small_talk
meaning_of_life: What is the [meaning of life|point of it all], [in your opinion|I turned forty today|I cannot sleep]
fun_fact: [Tell me something curious|Give me a fun fact] about [octopuses|lighthouses|the moon] [for my class|please]
where_are_you_from: Where do you [come from|hail from|call home] [originally|], [somewhere with palm trees|up north]
what_can_i_ask_you: [What sort of things|What else] can I ask you [about|], [apart from the weather|I am new here]
who_made_you: Who [built|programmed|made] you, [a big team or one person|if I may ask|and how long did it take]
thank_you: [You saved my evening|It works again], [thank you so much|many thanks] [for your patience|once more]
do_you_have_pets: Do you have [any pets|a dog or a cat] [at home|of your own], [mine says hello|I have two rabbits]
who_do_you_work_for: Who do you [actually|really] work for, [just curious|if you are allowed to say|is it {bank}]
goodbye: [That was all for today|I have to run now], [bye and take care|goodbye until {weekday}|see you tomorrow]
greeting: [Good morning|Hello there|Hey you], how [are you doing|is your {weekday}] [so far|on this gray day]
what_is_your_name: What is your name, [I forgot to ask|so I can thank you properly|or do you not have one]
what_are_your_hobbies: What do you [do for fun|like to do] when [nobody asks you things|you are off duty]
are_you_a_bot: Am I [talking|writing] to a [real person|human] or a [machine|computer], [it is hard to tell|be honest]
tell_joke: Tell me [a|your best] joke about [plumbers|penguins|tax forms], [I need a laugh|my niece is bored]
how_old_are_you: How [old are you|many years have you been around], [if I may ask|older than my car|roughly]
# meta
change_language: [Switch to {lang}|Please speak {lang} with me] [from now on|for today], [it is easier|I am practicing]
change_user_name: [From now on call me|Please start calling me] {name}, [nobody uses my full name|that is my real name]
maybe: [Perhaps, I would have to think|It could be either], [ask me tomorrow|let me talk to {name} first]
user_name: What name [have you saved|do you have] for me, [is it {name}|I forget what I told you]
repeat: [Say that again please|Could you repeat that last part], [the baby was crying|I only caught half]
yes: [Yes, exactly right|Yes please, go ahead|Yes, that is correct], [that is the one I meant|do it like that]
change_speed: [Please speak more slowly|Slow down a little], [I am taking notes|my grandmother is listening]
no: [No, that is wrong|No, not that one|Definitely not], [I said {weekday}|I meant the other one|leave it as it is]
sync_device: [Pair|Connect|Sync] [my new phone|the tablet|my watch] with [this|the kitchen] speaker [please|again]
change_accent: [Can you talk with|Please switch to] [a Scottish|an Australian|an Irish] accent [for a while|from now on]
change_volume: Turn the volume [down to three|down a bit|way down], [the baby is asleep|the neighbors are knocking]
whisper_mode: [Please whisper|Go into whisper mode] [from now on|until morning], everyone is [asleep|in bed]
cancel: [Stop, forget that|Never mind, cancel it|Cancel that last thing], [I changed my mind|{name} has already done it]
reset_settings: [Reset all your settings|Set everything back] to [the factory defaults|how it was when new] [please|]
change_ai_name: [I will call you|From today your name is|Can I rename you to] [Biscuit|Captain|Mabel], my [kids|nieces]
    chose it
# oos
oos: How [hard|far back] should I prune a [fig tree|climbing rose] in [spring|fall] / Who invented the [zipper|paper
    clip|umbrella] / How deep is the [deepest|largest] lake in {country} / Why do [cats|tigers] purr [when they are
    happy|at all] / Which clay is best for [a beginner|pots that go in the oven] / How many strings does a
    [harp|lute|sitar] have / What kind of wood [were old ships|are violins] made of / Who won the [chess|rowing]
    championship in {country} [last year|in 1998] / How do I get [candle wax|red wine] out of a [wool rug|linen shirt] /
    When was the [bicycle|piano|thermometer] invented
"""

# Sentences around a one-line request in a longer note, by domain; `asking` goes with questions, `any` with everything.
CONTEXT = """
banking: I have been with {bank} since {year} and normally manage everything in the app. / The account ends in {last4},
    in case that helps. / We are [moving house|having the roof done] next month and I am checking every cent twice. / My
    [husband|wife|father] used to look after the money and now it is my turn. / The branch on {street+} closed in
    {month}, so I can no longer just walk in. / I am not good with numbers, and even worse with passwords. / My
    [sister|accountant] told me to take care of it [this week|before the end of the month].
credit_cards: I am trying to be more careful about credit after a rather expensive year. / My [sister|colleague] is with
    the same bank and could not help me. / I pay almost everything by card these days, from groceries to the vet. / The
    app has sent me round in circles [all morning|since breakfast]. / I have been a customer since {year}, mostly a
    happy one. / We want to buy a [house|car] in the fall, so cards and credit are all we talk about at home. / My
    customer number is {last4}{last4+}.
kitchen_and_dining: {name+}'s birthday is coming up and I would like it to go well. / My [mother-in-law|boss] will be
    there, so I cannot get this wrong. / One of us is vegetarian and another cannot have nuts, just so you know. / I am
    not much of a cook and even less of a planner. / We tried {place+} last month and it was [a bit of a letdown|fine
    but far too loud]. / There are {few} of us, and everybody is hungry all the time. / I promised to take care of the
    food this time, and I have no idea what I am doing.
auto_and_commute: The car was my [aunt's|uncle's] and came without a manual. / I drive about 40 miles to work and back,
    so such things matter. / I leave for {city} at {early} on {weekday} and want to be prepared. / {name+} usually knows
    about this but is away until {weekday+}. / I only got my license in {year}, so please bear with me. / The trunk is
    full of camping gear and the children are already asking when we leave. / It is just me and the dog on this trip.
travel: We leave on {soon} and I am the one who has to organize it all. / It is our first long trip since {year} and I
    am out of practice. / I am travelling with my [parents|two small children], so I would like to know in good time. /
    My [sister|neighbor] has been there and says that it is best to ask early. / We saved up for this since {year}, and
    I want nothing to go wrong. / The guidebook I have is from {year} and no help. / {name+} is coming along and worries
    about everything.
work: I started at {firm+} in {month} and still do not know who to ask. / My manager is on leave until {soon+}, so I am
    trying you. / The intranet page about it was last changed in {year}. / My employee number is {order}, if you need
    it. / We talked about it at lunch and everybody had a different opinion. / I work part-time, [three|four] days a
    week, in case that matters. / I have to plan the next few months with {name+}, who works shifts.
asking: I looked through the help pages first and did not find the answer. / A short answer is fine, I do not need the
    whole story. / I asked the same thing last week, but the chat closed before I got an answer. / Sorry if this is [a
    silly question|the wrong place to ask], I am new to this. / Please keep it simple, I am [seventy-four|not a native
    speaker|no good with technical words]. / I know that you hear this a hundred times a day. / I am asking so that I
    can [plan ahead|write it down|sleep at night]. / {name+} says one thing, {name+} another, and I would like to know
    for certain. / If it depends, please tell me what it depends on.
any: I am [on the bus|on my lunch break|between two meetings], so excuse me for being brief. / I would like to have this
    settled by {weekday+}. / My neighbor {name+} says that you are good at this, so here I am. / If you need anything
    else from me, [just ask|ring me at 555-01{nn}]. / Please answer in writing, I forget what people tell me on the
    phone. / There is no rush, any time before {weekday+} is fine. / I tried the website, but the page [kept
    loading|went blank] every time.
"""

# Subjects of the longer documents: intent | thing | team | what they want to know. No team: a question, not a problem.
SUBJECTS = """
## lost_luggage | [my suitcase|the missing case|my lost luggage] | the baggage desk | where the suitcase is
what: My suitcase did not come off the belt in {city} after flight {flight} on {past}, and nobody can tell me where it
    is. / I flew to {city} with {airline} on {past}, and my checked bag [never arrived|was left behind somewhere on the
    way].
more: The suitcase is a [dark green|mustard yellow|navy blue] hard-shell case with [a red ribbon on the handle|an owl
    sticker on the lid]. / The tag number is {order} and I still have the paper receipt. / In the case are [my walking
    boots|a borrowed suit], my [medicine|glasses] and the papers for [the conference|my cousin's wedding]. / The tracing
    page has said "searching" since the first evening. / The hall emptied, the belt stopped, and {few} of us stood there
    looking at the rubber flaps. / I had to buy socks, a toothbrush and two shirts for {price}, and I kept the receipts.
    / My connection in {city+} was only 40 minutes, so I suspect that the bag is still there. / The label on the case
    says {person}, {street}. / A man at the airport thought that it had been loaded onto a flight to {city+} by mistake.
ask: Please trace the bag and tell me where it is. / When will my luggage be delivered to {street}? / Who pays back the
    {price} I had to spend while the luggage is missing? / Which office has the lost luggage file now, and how do I
    reach it directly?
log: The tracing page [changed from "searching" to "checking"|went back to "searching"|was down] at {clock+}, and [I
    took a picture of it|my heart jumped for nothing|that was all the news there was]. / [A bag|A suitcase|Something]
    "similar to mine" has been seen in {city+}, [says a text message|they write], but [the color does not match|it has
    no wheels|the tag is torn]. / Wore [the borrowed shirt|the same jacket|the airport socks] again, because everything
    else I own for this season is in that case. / Bought [a comb|shoes|an umbrella|a raincoat|a belt|two shirts|a
    razor|a phone charger|pajamas], receipt number {nn+} in the envelope. / Made a list of what was in the case: today I
    remembered [the blue sweater|the camera charger|my grandfather's razor|the gifts for the children|a library book|my
    good shoes]. / A courier [rang the bell|stood at the door] at {clock+} with a [black bag|pink case|golf bag] that
    belongs to [a family called {surname+}|a stranger from {city+}|nobody on our street], so I sent it back. / They want
    [a photo of the case|the brand of the zipper|proof of what the boots cost] now, and I [found an old holiday
    picture|drew it as well as I could|have nothing of the kind]. / Somebody says the case [missed the connection|went
    round the belt in {city+} all night|was put in a cage behind customs], somebody else says [it never left {city}|it
    is on a truck]. / The airport in {city+} does not answer, the one in {city} sends me back to {airline}. / Saw [a
    case like mine|the same ribbon] on the train and [stared at it for {few+} stops|nearly asked to look inside]. /
    Dreamed of [a baggage belt|the rubber flaps|an empty airport] and woke at {early+}. / [The insurance|My bank|The
    tour company] asked for [a police report|the receipt for the case|the tag number again], sent it at {clock+}. /
    {name+} offered to lend me [a coat|hiking boots|a whole wardrobe], which is kind, but the size is wrong. / At the
    airport in {city} the baggage room is open to the public [on {weekday+}s|for an hour a day], so I [went to
    look|asked {name+} to look]: {nn+} cases, not mine.
## order_status | [my order|the parcel|the missing delivery] | the delivery desk | where the parcel is
what: My order {order} from {shop} was supposed to arrive on {past}, and it is still not here. / I ordered [a folding
    desk|a bread machine|two garden chairs] at {shop} and cannot find out where the parcel is. The order number is
    {order}.
more: I paid {amount} up front, and the money left my account the same day. / The tracking page says that it is "out for
    delivery", as it has for days. / The confirmation promised delivery within {few} working days. / A card in the
    mailbox said that nobody was home, although I sat ten feet from the door. / The depot in {city} says that the parcel
    left, and the driver says that he never had it. / The parcel should go to {street}, which is easy to find, next to
    the bakery. / My neighbors at numbers 12 and 16 have not taken anything in. / The order was meant as a present for
    {name}, whose birthday is on {soon}. / A second box from the same order came on time, but without the screws.
ask: Please track the parcel and tell me where it is right now. / What is the real delivery date of order {order}? / If
    the package is lost, how soon can a new one be on its way? / Has my order actually been shipped, yes or no?
## smart_home | [the smart home trouble|the trouble with the lights] | device support | why the lights do not obey
what: Since {past} the lights and the heating in our house no longer do what we ask: lamps go on and off as they please.
    / Please turn the living room lights off and set the thermostat to 68 for me: since {past} our smart home ignores
    every command that I give it.
more: We have {nn} lamps, two thermostats and a set of blinds on the same hub. / The hub sits on a shelf in the hall,
    out in the open. / The trouble began after an update that ran during the night. / The wall switches still work, so
    the bulbs are not broken. / The upstairs thermostat is set to 68 and shows 81. / I renamed all the rooms, in case
    "study" and "studio" were being mixed up. / {name} has moved back to candles, which is romantic and not a solution.
    / The porch light comes on at noon and goes off at dusk.
ask: Please set the hall lights to off at {evening} and make that stick. / Can you turn the heating in the study to 68
    degrees and keep it there? / How do I stop the porch light from switching itself on? / Can the blinds be taken out
    of the morning routine?
log: The [hall|porch|bathroom|landing] light came on by itself at {clock+}, [flickered for {mins+} minutes|stayed on
    until I pulled the plug|went off when I said thank you], and [nobody had touched a switch|the cat gave me a
    look|{name} blamed me]. / I asked for [66|68|70] degrees in the [living room|study|nursery] and the heating [went to
    80|switched itself off|said it could not find that room]. / The blinds [opened|closed] [halfway through a film|in
    the middle of the night|just as the neighbors walked past], although the schedule says {early}. / The app insists
    that the [kitchen|garage|bedroom] lamp is [off|offline], while I am [standing under it|reading by it]. / I told it
    to turn off the [dehumidifier|coffee machine|fan] and it [dimmed the stairs|started the radio|said "okay" and did
    nothing]. / The "good night" routine [ran at noon|ran twice|left out the front door], so [we ate in the dark|I
    locked up by hand|half the house stayed lit]. / The motion sensor in the [corridor|cellar|pantry] takes [the
    curtain|a moth|thin air] for a person and [turns on every lamp|starts the fan|wakes the hall]. / I [removed and
    added|reset] the [hub|upstairs thermostat|plug in the study] [as instructed|for the {nth+} time], which took {mins+}
    minutes and [changed nothing|moved the fault to the bathroom]. / The [front door| garage] sensor reports a low
    battery, although the battery [is new|was changed on the weekend]. / For once [everything worked|the lights obeyed]
    from {early+} until [supper|about {clock+}], and I did not dare to touch anything. / [{name+}|Our lodger {name+}]
    now works the [lamps|heating] by hand and calls me [the janitor|the chief engineer]. / By the meter the heating used
    {price+} of gas [since yesterday|in two days|since the weekend], and the [study|nursery] never got above [59|61|62]
    degrees. / Between supper and bedtime the [stair|terrace|kitchen] light switched itself on and off {mins+} times, I
    kept a tally. / The [dishwasher|washing machine] plug cut out halfway through, and the app claims that I asked for
    it [by voice|from my phone], [at a time when I was asleep|while I was out with the dog]. / The bedroom lamp now
    answers to the name ["Kitchen"|"Guest"|"Lamp 7"], and "bedroom off" [darkens the stove|does nothing at all|rings the
    doorbell]. / Breakfast in [bright purple|deep red|disco blue], because the [table|counter|window] lamp chose that
    color [overnight|by itself]. / [My mother|The babysitter|A guest] asked how to turn on the [bathroom|hall] light,
    and I needed {mins+} seconds and two apps to show it. / The update of the [hub|app|thermostat] finished at {clock+},
    and since then the [scenes|timers|rooms] are [gone|in another language|all called "New"]. / At {evening+} I asked
    for a dimmed [living room|hallway|dining room] and got [full brightness|pitch darkness|a slow green pulse], which
    the [dog|baby|lodger] disliked. / The heating in the [hall|bathroom|guest room] believes that we are [on
    vacation|asleep|out], although I have pressed "home" {few+} times. / The outdoor lights came on at {clock+}, in
    [bright sunshine|a hailstorm|front of the whole street], and [would not go off|went off at dusk].
## tire_pressure | [the tire pressure|the low tire|the warning light] | the garage | how much air the tires should have
what: The tire pressure light in my car has come on every morning since {past}, and I want to know whether the air in my
    tires is right. / Could you check my tire pressure? The dashboard warns me about low air in the rear left tire
    nearly every day.
more: The sticker in the door says 33 psi in front and 36 in the rear. / The gauge at the gas station and my own never
    agree. / The tires are all-season ones, fitted in {month}. / There is no nail in the tread and no hiss, I checked
    with soapy water. / The valve caps are all there, two of them shaped like little skulls, my son's idea. / I drive to
    {city} and back twice a week, mostly on the highway. / When the car is fully loaded the light comes on within {few}
    miles.
ask: What is the pressure in each of my tires right now? / How much air should I put in the rear tires for a full load?
    / Is it safe to drive to {city} with 29 psi in one tire? / Please tell me whether my tires are losing air or the
    sensor is wrong.
log: At {early+} the display showed [27|28|29] psi in the [front left|rear right|rear left] tire, and [33|34|35] by the
    time I [parked|reached the office|came off the highway]. / Pumped up [both rear tires|the rear left tire|all four]
    at the station [by the bridge|on {street+}], the hose [leaked more than it gave|was too short|froze to its hook],
    cost me {few+} dollars. / The light came on [at the first corner|near the ring road|halfway to {city}] and went off
    [by itself|after a restart|when the sun came out]. / My own gauge says [30|31|32], the one at the gas station says
    [34|36], the car says [28|29], and [I trust none of them|I took the middle]. / Cold night, {degrees+} degrees, and
    [two|all four] tires were [two|three] pounds low before breakfast. / {name+} [kicked|looked at] the [rear|front]
    tires and declared them [fine|soft|"round enough"]. / Swapped [the front and rear wheels|the two rear wheels] in the
    yard, which took {mins+} minutes and my good mood, and [the warning moved to the front|nothing changed]. / Drove
    {nn+} miles with [{few+} crates of books|the whole family|an empty trunk]: the rear tires ended at [37|38] psi [and
    the light stayed off|with the light on]. / No warning at all today, [which makes me suspicious|so of course I
    checked twice], [33 and 36 all round|31 in front].
## account_blocked | [my blocked account|the block on my account] | the account desk | why the account is blocked
what: My {bank} account has been blocked since {past} and nobody will tell me why. / When I tried to log in to {bank} on
    {past}, the screen said that my account was on hold. I have not done anything unusual.
more: The account number ends in {last4}. / My salary is paid into this account, and I cannot get at a cent. / The rent
    of {amount} bounced, and the landlord was not amused. / The last thing I did was pay {price} for a haircut. / I have
    not travelled, changed my phone or forgotten my password. / The app shows a gray padlock and the words "contact us".
    / I am living on {few} bills and a jar of coins. / The letter you sent names a paragraph of the terms that is not in
    my copy. / My joint account with {name} works as usual.
ask: Why is there a hold on my account? / What do I have to do to get my account unblocked? / Until when will the block
    stay in place? / Please tell me in writing who locked the account and for what reason.
## report_fraud | [my fraud report|the fraud case|the fraud on my card] | the fraud team | who made these charges
what: I want to report fraud: on {past} somebody charged {price} to my {bank} card in {city}, where I have never been,
    and more charges followed. / There are {few} payments on my account that I did not make, and I am sure that this is
    fraud. The first one is dated {past}.
more: The largest charge is {amount} for [designer sunglasses|a drum kit|car parts]. / The card never left my wallet, I
    am looking at it now. / I was at work at {firm} at the time, and {name} can confirm it. / The shop goes by a name
    like a cat walking over a keyboard. / A week before, I had a strange call from someone who wanted to "verify my
    details". / The stranger also subscribed to {few} streaming services in my name. / I have not given my PIN to
    anybody, not even to my family. / The police gave me the report number {order}.
ask: Please record these charges as fraudulent. / Will I get all of the money back, and when? / What else can the thief
    do with my details? / How did someone use my card for fraud without having it?
## card_declined | [my card trouble|the declined card] | the card hotline | why the card keeps being declined
what: My {bank} card was declined on {past} at [{shop}|a restaurant in {city}], in front of a line of people, and I do
    not know why. / Every time I try to pay with my {bank} card it gets declined, first on {past} and {few} times since.
more: There is enough money in the account, I checked twice. / The amount was only {price}. / The cashier tried the
    chip, the stripe and a plastic bag around the card. / I had to leave {few} bags of groceries at the counter. / The
    card works at the bakery and fails at the pharmacy, always the same way. / The card ends in {last4} and is valid for
    two more years. / Online the card is rejected as well, with the message "ask your issuer". / {name} had to lend me
    the money, and I hate that.
ask: Why was my {bank} card declined on {past}? / What do I tell a shop when the card gets refused again? / Was it
    declined by you or by the shop's terminal? / Please check what is wrong, so that my card is accepted again.
## pto_request_status | [my vacation request|my time off request] | the HR desk | whether the vacation is approved
what: I sent in a vacation request on {past} for the week of {soon}, and I still do not know whether it has been
    approved. / Has my time off been approved yet? I asked for {few} days from {soon}, and the request has been open
    since {past}.
more: In the portal the request is still yellow, with the word "submitted" next to it. / My manager says that it is with
    you, and you say that it is with my manager. / The flights to {city} cost {amount}, and I can only hold them for a
    short while. / {name} will cover for me, that has been agreed. / My colleague asked after me and was approved within
    {few} hours. / The request has the number {order}. / I have more than enough days left. / The days off are for my
    [brother's wedding|parents' anniversary], so I cannot move the date.
ask: Has my vacation request been approved, rejected or lost? / Who has to sign off on my time off request now? / By
    when will I know whether I can go? / Please tell me the status of my request, even if the answer is no.
## direct_deposit | [my direct deposit|the deposit of my pay] | the payroll office | how direct deposit gets set up
what: I have been trying to set up direct deposit for my paycheck since {past}, and I am still being paid with a paper
    check. / How do I get my pay from {firm} deposited straight into my {bank} account? I have handed in the direct
    deposit form twice.
more: The last check took a week to clear, and the rent was late. / The form asks for a voided check, and I do not own a
    checkbook. / My account number ends in {last4}, the type is checking. / The payroll page rejects my bank with the
    words "invalid length". / I would like to split it: {price} into savings and the rest into checking. / {name} in the
    next office had it running in a day. / The nearest branch that takes paper checks is {mins} miles away. / I changed
    banks in {month}, so the old details are of no use.
ask: What are the steps to get my paycheck by direct deposit? / From which payday on will my wages go straight to the
    bank? / Is the form missing something, or can you switch on direct deposit yourself? / Can I have my pay deposited
    into two accounts?
## travel_suggestion
what: We are spending {few} days in {city} from {soon}, and I would love some suggestions for what to see and do. /
    Could you suggest what to do in {city}? We arrive on {soon}, and none of us has been there before.
more: We are a mixed group: [my parents, who are over seventy, and two cousins|three old friends from school and a
    baby]. / We like [small museums|gardens] and [street markets|boat trips], and we are not keen on [shopping
    malls|long bus tours]. / There will be no car, so it has to be reachable on foot or by tram. / If it rains, and I
    hear it does, we need a few ideas under a roof as well. / A day trip would be fine too, up to an hour each way. / On
    our last trip, to {country}, we ran from one sight to the next and nobody enjoyed it. / We can spend about {amount}
    on sights and entries in total, but the best things are often free. / {name} collects [lighthouses|funny street
    signs], so anything odd in that direction gets extra points. / A guidebook from the library lists fifty sights,
    which is no help at all. / We are early risers and would rather see the famous places before the crowds.
ask: Which sights in {city} would you not miss? / Which neighborhood is best for simply wandering about? / Is there a
    museum or a park that locals love and tourists overlook? / What would you do there on the last evening?
## meal_suggestion
what: I am running out of ideas for dinner, and I would like you to suggest some meals for next week. / Can you suggest
    what I could cook on {weekday}? {name} is coming over, and I make the same {dish} every single time.
more: There are {few} of us at the table, and one is a boy of seven who eats nothing green. / I get home at {evening},
    so nothing that takes more than 45 minutes. / {name} does not eat pork, and I cannot stand fennel. / The oven is
    broken, but I have two burners and a rice cooker. / In the fridge are [half a cabbage and some feta|a chicken and
    three leeks], which ought to be used up. / We had pasta on four evenings out of seven. / I like my food warm and a
    little spicy, the children do not. / About {price} for the whole meal is what I can spend. / I once tried a
    twelve-step dish from a magazine and we ended up with toast. / Leftovers for the lunch box would be welcome. / There
    is a good fish stall at the market on {weekday+}s.
ask: What could I make that everyone will eat? / Do you have an idea for a warm dish without meat? / Which meal can I
    prepare the evening before? / What goes well as a simple dessert after that?
## improve_credit_score
what: I would like to improve my credit score and do not know where to begin. / My credit score is {score}, and I want
    to bring it up before we ask for a home loan [next year|in the fall].
more: I was late with {few} payments in {year}, when I was between jobs. / I have one card with {bank} and use most of
    its limit each month. / A friend says to open a second card, my father says to cut up the first. / The student loan
    is almost paid off. / I closed my oldest card in {month}, which I am now told was a mistake. / The report lists an
    address where I have never lived. / I could put about {price} a week toward old debts. / My partner's score is much
    better than mine, and we would apply together. / I always paid rent on time, but that does not seem to count. / I do
    not want to pay one of those companies that promise miracles.
ask: What should I do first to raise my score? / How long does it take until better habits show up in the score? / Does
    it help to pay the card twice a month? / How do I get the mistake in my report corrected, and will that improve my
    score?
## international_visa
what: I am going to {country} on {soon} and need to know whether I need a visa. / Can you tell me how the visa rules for
    {country} work? We want to stay for {few} weeks, leaving on {soon}.
more: I have a [Canadian|Swiss|Polish] passport that is valid until next spring. / My husband has two passports and
    never knows which one to show. / We would fly in through {city} and leave over land. / The embassy page was last
    updated in {year} and the phone just rings. / We are not going to work there, only to visit {name}, who teaches at a
    school. / One website charges {price} for a form that another calls free. / Our daughter turns eighteen during the
    trip. / I was refused a visa once, in {year}, because of a missing photo. / A colleague got one at the airport and a
    neighbor was sent home. / We may go across the border for a few days in the middle and come back in.
ask: Do I need a visa at all for a stay of that length? / How long does a visa application take, and what does it cost?
    / Would we need a second visa to come back in after a side trip? / Which documents do I have to bring for the visa?
## meaning_of_life
what: This is not an ordinary request: I would like to know what you think the meaning of life is. / What is the point
    of it all? I have been asking myself what life is for since {past}, and now I am asking you.
more: I turned [forty|fifty|sixty] last week, and the cake said so in large numbers. / My grandmother used to say that
    the point is to be useful and to have a good soup on the stove. / I have a decent job at {firm}, a bicycle and a
    balcony, so I am not complaining. / At school they gave us {few} philosophers, and each was sure that the others
    were wrong. / {name} thinks that life has no meaning and is the most cheerful person I know. / Some days I think the
    answer is people, other days I think it is [music|gardening]. / When my father retired he asked the same thing and
    then built a boat in the garage. / I sat by the river in {city} for an hour, and the ducks seemed to have it figured
    out. / I am not sad, only curious, and awake at odd hours. / My daughter, who is six, says that we are here to "look
    at stuff".
ask: So what, in your view, makes a life worth living? / Is there one meaning of life for everybody, or does each of us
    make one up? / Does it matter whether anyone remembers us? / If you had to put the purpose of life in one sentence,
    what would it be?
## restaurant_reservation
what: I would like to reserve a table at {place} on {soon} for {nn} people, around {evening}. / Please book us a table
    at {place} for {soon}. We are a party of {nn} and would come at {evening}.
more: The dinner is for my parents' golden wedding, and the whole family is coming from {city}. / Two of the guests use
    a wheelchair, so a table without steps would be important. / If the long table in the garden room is free, that
    would be perfect. / We need {few} high chairs for the little ones. / One aunt is allergic to shellfish and another
    will claim that she is. / A set menu at about {price} a head would suit us. / My brother will say a few words, so a
    corner away from the music would be kind. / We would bring our own cake, if the kitchen does not mind. / {evening}
    suits us best, but half an hour earlier or later is fine. / The booking should be in the name of {person}. / Last
    year we were given two tables at opposite ends of the room, and nobody could pass the salt.
ask: Can you book the table and send me a confirmation? / If that evening is full, please reserve for the day after. /
    Is a deposit needed to hold the table? / Until when can I change the number of people in the reservation?
## oos
what: I have a question about the fig tree in our yard: when and how hard should it be pruned? / Perhaps you know about
    old pianos. There is an upright in our house, and I would like to know how old it is and whether it can be tuned
    again.
more: It was already here when we bought the house in {year}. / {name}, who lives across the street, says to leave it
    alone. / My grandfather would have known, but he never wrote anything down. / It stands by the wall on the south
    side, where it gets a lot of sun. / One part of it seems to be cracked, about as wide as a finger. / I have read
    {few} library books on the subject, and they contradict each other. / A man from {city} offered to take it away for
    {price}, and I said no. / Nobody has looked after it for at least ten years. / I sent a photo to a club of
    enthusiasts and they only said "lovely". / I am rather fond of it, so I do not want to do anything that cannot be
    undone.
ask: What would an expert do first? / Is there anything that I should not do under any circumstances? / How does one
    find somebody who knows about such things? / Is it worth the trouble at its age?
"""

# What people write about any unsolved problem: whom they reached, what they were told, what came of it, how they feel.
SHARED = """
contact: I rang {team} at {clock+} and [waited|sat on hold|listened to pan pipes] for {mins+} minutes before {agent}
    [answered|came on the line]. / I opened a chat [at the office|during lunch|in the line at the baker's], and {agent}
    [asked me to explain everything from the start|first called me by the wrong name|needed {mins+} minutes to find my
    file]. / I wrote [a long email|a polite letter|once more through the web form], and {agent} replied [the same
    evening|within {few+} hours|with three lines and a link]. / I asked to be called back, and at {clock+} the phone did
    ring: it was {agent}, [in a very noisy room|who had clearly read nothing|eating something crunchy]. / [my sister|my
    neighbor|my partner] called {team} for me, because I was [at work|in bed with a cold|at the dentist], and spoke to
    {agent}. / I went to the office in person, took ticket number {mins+}, and was [finally seen by|sent from window to
    window until I met] {agent}. / I sent {team} [copies of everything|two photos and a summary|the form once again],
    and {agent} [confirmed that it had arrived|wrote back that the file could not be opened]. / {agent} from {team}
    phoned [out of the blue|while I was hanging up the washing|just as the soup boiled over]. / I got through to
    {agent}, [who was new|a supervisor this time|the {nth+} person so far], after {mins+} minutes of menus and button
    pressing.
said: {agent} [said|assured me] that {thing} [was being looked at|had been passed to another team|had top priority now].
    / {agent} could not tell me {goal}, only that [the screen showed a yellow mark|the notes were incomplete|a colleague
    had written "pending"]. / According to {agent}, the earlier notes about {thing} had been [filed under another
    name|closed by mistake|lost when the system changed]. / {agent} promised [an answer|a phone call|news] by
    {weekday+}, [which I wrote on the calendar|and sounded sincere|with the usual caveats]. / {agent} asked me {few+}
    questions about {thing}, all of which I had [answered before|answered in writing]. / {agent} read me a paragraph
    from a manual that [had nothing to do with|did not even mention] {thing}. / To be fair, {agent} [was
    patient|apologized twice|stayed on to the end] and wrote down the whole history of {thing}. / {agent} suggested that
    I [wait a little longer|start again from the beginning|look again in the morning], which is what [everybody says|the
    last one said, too]. / {agent} could find no trace of my earlier [calls|messages], although I had [the dates and
    names|a neat list of them] in front of me. / I asked how long this would take, and {agent} [laughed, kindly|put me
    back on hold|said that it was a good question]. / {agent} thought that {thing} was a matter for [a different
    department|the technical people|whoever had answered first], and [gave me a number that rings and rings|offered to
    connect me, and the line went dead].
after: By evening nothing had changed. / {few+} hours later I was exactly where I had started. / The promised
    [call|email] did not come, and I went to bed [cross|with the phone on the pillow]. / At {clock+} an automatic
    message [thanked me for my patience|asked me to rate the conversation|told me that the case was closed]. / For [an
    hour|one afternoon] it looked as if {thing} was about to be sorted out, and then [it was not|all was as before]. /
    Somebody left a voice message while I was [in the shower|on the train], from a number that does not take calls. / I
    looked again at {clock+}, and there was [no change|nothing new] about {thing}. / I added [the name and the time|one
    more line] to my list, which now [fills a page|has {nn+} entries]. / The website showed [a spinning circle|an error
    with a very long number|a cheerful green tick that meant nothing]. / I thanked {agent} and [hung up|closed the
    window], [no wiser than before|and made tea].
mood: !I am not someone who complains, but {thing} is [the first thing I think of in the morning|starting to cost me
    sleep|wearing me out]. / !I keep telling myself that there are bigger problems, and that is true, but {thing} needs
    an answer all the same. / What bothers me most is not the delay but that [each person starts from zero|nobody seems
    to read the file|I have to chase everyone]. / !I worked behind a counter for {nn+} years, and I would never have
    left a customer hanging like this. / !A plain "we do not know yet" would [be fine|already help me]. / {name+} says
    that I should [let it go|write to a newspaper|send cake], and I am [tempted|not there yet]. / I would still rather
    believe that this is [a mix-up|bad luck] than that nobody cares. / !Nobody has been rude to me, I want to [say that
    clearly|put that on record], and yet {thing} [has not moved an inch|is where it was]. / !By now I know the hold
    music so well that I [hum it while cooking|heard it in a dream]. / Some days I can laugh about {thing}, [today was
    not one of them|and this was one of those days]. / I would rather [garden|read|learn the banjo] than write about
    {thing}, and yet here I am. / If {thing} were a dog, it would have [found its way home|been house-trained] by now. /
    {name+} asked whether I still believe in a happy end, and I said yes, [out of stubbornness|on most days].
life: It rained until noon, and I sat at the kitchen table with the folder about {thing}. / [My mother|Cousin {name+}]
    rang to ask for news about {thing}, and I had [none|to say "not yet"]. / At work [everybody|{name+} from the front
    desk] asks about {thing} now, [before saying good morning|at the coffee machine]. / I told the story of {thing} [at
    dinner|to the hairdresser|at choir practice], and [somebody had been through the same|nobody believed me|we ended up
    laughing]. / The [cat|dog] slept on my notes, which is the wiser attitude. / We had planned [a day at the lake|to
    visit {name+} in {city+}], but I stayed close to the phone because of {thing}. / !I bought a [blue|red|yellow]
    folder and put everything about {thing} in it, sorted by date. / {name+} [brought soup|came by with a cake] and we
    did not mention {thing} [for a whole hour|until dessert]. / On the bus I caught myself [explaining {thing} to a
    stranger|drafting this in my head]. / A quiet day otherwise: [laundry|two loads of dishes|a walk to the post
    office], and a look at the clock every ten minutes. / Had [a haircut|a checkup at the dentist|the windows cleaned]
    today, and even there we ended up talking about {thing}. / {name+} sent a [postcard|photo] from {city+}, and in the
    postscript: "How is {thing}?" / Slept [badly|until nine|like a stone], made [pancakes|coffee|porridge], opened the
    laptop: the first thought was {thing}. / The neighbors on {street+} [have never had such luck|had the same last
    year], and we compared notes over the fence. / [Baked bread|Fixed the gate|Cleaned the attic] to take my mind off
    {thing}, with [good|mixed|modest] success.
inquiry: I have asked around, and everybody says something different. / There is no great hurry, but an answer by
    {weekday} would be nice. / I write everything down, so the answer may be as long as you like. / {name+} thinks that
    I ask too many questions, but that is how one learns. / If you need to know anything else, just ask, I read my mail
    every evening. / I hope that this is the right place for such a question. / I found your address on a leaflet and
    thought, why not. / I searched for it online for an hour and came away with more questions than before. / Please do
    not send me a list of links, I would prefer a few plain sentences. / My handwriting is terrible, so be glad that
    this is typed.
opening: I am writing about {thing}. / I hope that you can help me with {thing}. / Let me start at the beginning,
    because it is a long story. / I have been your customer since {year}, and this is my first letter of this kind. /
    Please read this to the end, even if it is long. / I have tried to keep this short and have not succeeded.
closing: Thank you for [reading all this|taking the time]. / I look forward to your answer. / Please reply by email, I
    am hard to reach by phone. / I would be grateful for an answer by {weekday}. / Thank you in advance for looking into
    it. / With hope, and a cup of tea at my side.
agent_ask: Could you describe it in a little more detail? / What else should I know about it? / Please tell me more. /
    Is there anything else that might matter? / I see. What else have you noticed?
agent_open: And what happened then? / I am still here, please go on. / How did it continue? / I see. Was there anything
    after that? / I am taking notes. And since then? / Oh dear, I am sorry to hear that. And after that? / Let me read
    that again. What else do I need to know about {thing}? / That should not have happened. Please tell me the rest. /
    Thank you, that helps. Is there more? / Understood, I am adding it to the file. Please continue.
"""

# Questions of an agent in a chat transcript, with the customer's answers.
EXCHANGES = """
pairs: May I have your reference number, please? => It is {order}. I know it by heart by now. / Could you spell your
    last name for me? => {surname}, just as it sounds, with a capital {initial}. / Which address do we have for you? =>
    {street}, and please do not send anything to the old one. / Who did you speak to last time? => I have a list of
    names. Shall I read it out? It takes a while. / Is it all right if I put you on hold for a moment? => If it is not
    the pan pipes again, yes. / I am back, thank you for waiting. => No problem, I have watered the plants. / Did you
    receive our letter? => I received a letter. It was addressed to somebody else on my street. / Would you like to
    speak to a supervisor? => I would like to speak to whoever can tell me {goal}. / Have you tried the app? => I have
    tried the app, the website, the phone and patience, in that order. / Which phone number can we reach you at? =>
    555-01{nn}, after {clock}. / Is there anything in writing? => A folder full. I can send you a scan of every page
    tonight. / Our system is a little slow today. => So am I, take your time. / I can offer you a small voucher for the
    trouble. => That is kind, but {thing} is what I need sorted out, not a voucher.
"""


def entries(text: str) -> dict[str, list[str]]:
    """Reads ``key: one / two`` lines, where an indented line continues the entry before it."""
    lines = re.sub(r"\n +", " ", text.strip()).splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("#"))
    return {key: body.split(" / ") for key, body in pairs}


def sections(text: str, mark: str) -> dict[str, str]:
    """The text under each heading, which is a line that begins with the mark."""
    parts = (part.split("\n", 1) for part in f"\n{text.strip()}".split(f"\n{mark} ")[1:])
    return {heading: body.strip("\n") for heading, body in parts}


WORD_LISTS, LINE_POOLS, CONTEXT_POOLS, SHARED_POOLS = map(entries, (WORDS, LINES, CONTEXT, SHARED))
PAIRS = entries(EXCHANGES)["pairs"]
DOMAINS = {
    intent: domain for domain, body in sections(LINES, "#").items() for intent in entries(body)
}
HEADINGS = {
    heading.split(" | ")[0]: heading.split(" | ")[1:] for heading in sections(SUBJECTS, "##")
}
SUBJECT_POOLS = dict(zip(HEADINGS, map(entries, sections(SUBJECTS, "##").values()), strict=True))
PROBLEMS = [intent for intent, facts in HEADINGS.items() if facts]
DIARIES = [intent for intent, pools in SUBJECT_POOLS.items() if "log" in pools]
NO_NOTE = {
    "cancel_reservation",
    "current_location",
    "flight_status",
    "travel_notification",
    "uber",
}  # said in one line
NOTES = [
    i
    for i, domain in DOMAINS.items()
    if domain in CONTEXT_POOLS and i not in SUBJECT_POOLS and i not in NO_NOTE
]

ASKS = r"(how|what|which|where|when|who|why|is|are|am|do|does|has|have|can|could|may|will|until|by|on which|any)\b"
TELLS = r"(I|my|mine|it|the|they|we|spellcheck)\b"


def words(text: str) -> int:
    """The number of words in a text."""
    return len(text.split())


class Writer:
    """Writes one document about an intent: fills in templates and remembers what has been said."""

    def __init__(self, rng: random.Random, when: datetime, intent: str) -> None:
        """``when`` is the time at which the document is sent."""
        self.rng, self.when, self.today, self.intent = rng, when, when.date(), intent
        self.pools = SHARED_POOLS | SUBJECT_POOLS.get(intent, {})
        self.facts = dict(zip(("thing", "team", "goal"), HEADINGS.get(intent, []), strict=False))
        self.used: Counter[str] = Counter()
        self.decks: dict[str, list[str]] = {}
        self.said: set[str] = set()
        self.day_first = rng.random() < 0.4
        self.slot("writer")  # so that nobody else in the document gets this name

    def day(self, day: date) -> str:
        """A date in the style of this document."""
        return f"{day.day} {day:%B}" if self.day_first else f"{day:%B} {day.day}"

    def pick(self, options: list[str]) -> str:
        """One of the options, from those that this document has used least."""
        least = min(self.used[option] for option in options)
        choice = self.rng.choice([option for option in options if self.used[option] == least])
        self.used[choice] += 1
        return choice

    def new(self, key: str) -> str:
        """A new value for a slot."""
        number = self.rng.randrange
        generators: dict[str, Callable[[], str]] = {
            "amount": lambda: f"${number(30, 190) * 20:,}",
            "price": lambda: (
                f"${number(22, 96)}.{self.rng.choice(['00', '10', '49', '50', '75', '99'])}"
            ),
            "order": lambda: f"{self.rng.choice(['TM', 'KR', 'BQ', 'HX'])}-{number(20000, 90000)}",
            "flight": lambda: f"{number(110, 980)}",
            "points": lambda: f"{number(31, 190) * 100:,}",
            "last4": lambda: f"{number(1000, 9999)}",
            "mins": lambda: f"{number(11, 58)}",
            "nn": lambda: f"{number(11, 30)}",
            "score": lambda: f"{number(560, 660)}",
            "degrees": lambda: f"{number(19, 32)}",
            "year": lambda: f"{number(2009, 2025)}",
            "month": lambda: f"{self.today - timedelta(number(40, 160)):%B}",
            "past": lambda: self.day(self.today - timedelta(number(3, 20))),
            "soon": lambda: self.day(self.today + timedelta(number(6, 40))),
            "writer": lambda: self.pick(WORD_LISTS["name"]),
            "person": lambda: f"{self.slot('writer')} {self.slot('surname')}",
            "initial": lambda: self.slot("surname")[0],
        }
        if key in generators:
            return generators[key]()
        return self.pick([word for word in WORD_LISTS[key] if word not in self.facts.values()])

    def slot(self, key: str, fresh: bool = False) -> str:
        """The value of a slot: the one of this document, or one that differs from it."""
        if fresh:
            return self.new(key)
        if key not in self.facts:
            self.facts[key] = self.new(key)
        return self.facts[key]

    def fill(self, template: str) -> str:
        """The text of a template."""
        text = template.lstrip("!").replace("{thing}", self.facts.get("thing", ""))
        while found := re.search(r"\[([^\[\]]*)\]", text):
            text = text[: found.start()] + self.pick(found[1].split("|")) + text[found.end() :]
        text = re.sub(r"\{(\w+)(\+?)\}", lambda slot: self.slot(slot[1], bool(slot[2])), text)
        text = re.sub(r" +", " ", text).replace(" ,", ",").strip()
        return text[0].upper() + text[1:]

    def take(self, pool: str, count: int = 1) -> str:
        """Sentences from a pool: no template comes again before all have been used, and one with ``!`` never does."""
        taken: list[str] = []
        while len(taken) < count:
            if not self.decks.get(pool):
                again = [
                    template
                    for template in self.pools[pool]
                    if template[0] != "!" or pool not in self.decks
                ]
                self.decks[pool] = self.rng.sample(again, len(again))
            sentence = self.fill(self.decks[pool].pop())
            if sentence not in self.said or self.rng.random() < 0.05:
                taken.append(sentence)
        self.said.update(taken)
        return " ".join(taken)

    def episode(self, day: date | None = None) -> str:
        """One attempt to get help: whom the writer reached, what they were told and what came of it."""
        first = "contact" not in self.decks
        agent = self.facts["agent"] = self.slot("agent", fresh=True)
        contact = self.take("contact")
        if day:
            started = not contact.startswith(agent)
            when = [
                "On {}",
                "On {},",
                "Then, on {},",
                *(["The next attempt was on {}:"] if started else []),
            ]
            contact = contact[0].lower() + contact[1:] if contact.startswith("My ") else contact
            contact = f"{(when[0] if first else self.pick(when)).format(self.day(day))} {contact}"
        return f"{contact} {self.take('said', self.rng.choice([1, 1, 1, 2]))} {self.take('after')}"

    def line(self) -> str:
        """A one-line request."""
        text = self.fill(self.rng.choice(LINE_POOLS[self.intent]))
        head, _, tail = text.rpartition(", ")
        if text.endswith("?"):
            return text
        if not re.match(ASKS, text, re.IGNORECASE):
            return text + ("?" if re.match(ASKS, tail) else ".")
        return (
            f"{head}? {tail[0].upper()}{tail[1:]}."
            if head and re.match(TELLS, tail)
            else f"{text}?"
        )

    def note(self) -> str:
        """A short message: a problem in a few sentences, or a one-line request with its circumstances."""
        rng = self.rng
        if self.intent in SUBJECT_POOLS:
            parts = [self.take("what"), self.take("more", rng.choice([2, 3, 4]))]
            if self.intent in PROBLEMS and rng.random() < 0.3:
                parts.append(self.episode())
            parts.append(self.take("ask"))
        else:
            self.pools = CONTEXT_POOLS
            request = self.line()
            parts = [self.take(DOMAINS[self.intent], rng.choice([2, 2, 3])), request]
            parts += [self.take("asking")] if "?" in request else []
            parts.append(self.take("any"))
        greeting = rng.choice(["Hi team!", "Hello help desk.", "Good morning.", "", "", ""])
        ending = rng.choice(
            [
                f"Thanks, {self.slot('writer')}",
                "Thank you in advance!",
                "Many thanks for your help.",
                "",
                "",
            ]
        )
        return " ".join([greeting, *parts, ending]).strip()

    def days(self, span: int) -> list[date]:
        """All the days since the matter began, ``span`` days ago."""
        self.facts["past"] = self.day(self.today - timedelta(span))
        return [self.today - timedelta(ago) for ago in range(span - 1, 0, -1)]

    def workdays(self, count: int, span: int) -> list[date]:
        """Some of the days since the matter began on which somebody answers the phone."""
        open_days = [day for day in self.days(span) if day.weekday() != SUNDAY]
        return sorted(self.rng.sample(open_days, count))

    def letter(self, target: int) -> str:
        """An email or a long letter of about ``target`` words."""
        rng, problem = self.rng, self.intent in PROBLEMS
        visits = max(1, (target - 190) // 85) if problem else 0
        days = self.workdays(visits, visits * 2 + 8)
        details = min(len(self.pools["more"]), max(5, target // 30))
        opening = self.take("opening") if problem and target > 300 else ""
        paragraphs = [f"{opening} {self.take('what')}".strip(), self.take("more", details // 2)]
        paragraphs.append(self.take("more", details - details // 2))
        for day in days:
            paragraphs.append(self.episode(day))
            if rng.random() < 0.4:
                paragraphs[-1] += " " + self.take(rng.choice(["mood", "life"]))
        paragraphs.append(
            self.take("mood") if problem else self.take("inquiry", rng.choice([2, 3, 4]))
        )
        paragraphs += [
            self.take("ask", min(4, rng.choice([2, 3]) + target // 400)),
            self.take("closing"),
        ]
        greeting = rng.choice(
            [
                "Dear help desk,",
                "Hello everyone,",
                "Good morning,",
                "To whom it may concern,",
                "Dear team,",
            ]
        )
        address = unicodedata.normalize(
            "NFKD", self.slot("person").replace(" ", ".").lower()
        ).encode("ascii", "ignore")
        contact = rng.choice(
            [f"\n{address.decode()}@example.com", f"\nPhone: 555-01{self.slot('nn')}", "", ""]
        )
        ending = f"{rng.choice(['Kind regards', 'Best wishes', 'Sincerely'])},\n{self.slot('person')}{contact}"
        return "\n\n".join([greeting, *paragraphs, ending])

    def diary(self, target: int) -> str:
        """Dated notes about a problem, one entry a day."""
        rng, days = self.rng, self.days(31 if target > 2500 else target // 110)
        text = [
            f"{self.fill('Notes about {thing}')}, as you asked me to keep them. {self.take('what')}"
        ]
        text.append(self.take("more", 5))
        for number, day in enumerate(days):
            entry = self.take("log")
            share = (target - words(" ".join(text))) / (len(days) - number) * rng.uniform(0.8, 1.2)
            if share > 75 and day.weekday() != SUNDAY and rng.random() < 0.8:
                entry += " " + self.episode()
            while words(entry) < share - 12:
                entry += " " + self.take(rng.choice(["log"] * 5 + ["mood", "life", "life"]))
            text.append(f"{day:%A}, {self.day(day)}\n{entry}")
        return "\n\n".join([*text, f"{self.take('ask', 4)}\n{self.slot('person')}"])

    def transcript(self, target: int) -> str:
        """A chat between a customer and an agent, with the time of every message."""
        rng, days = self.rng, iter(self.workdays(26, 45))
        customer, helper = self.slot("writer"), self.new("agent")
        self.facts["helper"] = helper
        pairs = rng.sample(PAIRS, len(PAIRS))
        turns = [(helper, f"Hello, you are chatting with {helper}. How can I help you today?")]
        turns.append((customer, self.take("what")))
        for _ in range(len(self.pools["more"]) // 2):
            turns += [(helper, self.take("agent_ask")), (customer, self.take("more", 2))]
        while sum(words(text) for _, text in turns) < target - 80:
            if pairs and rng.random() < 0.5:
                turns += zip((helper, customer), self.fill(pairs.pop()).split(" => "), strict=True)
            turns.append((helper, self.take("agent_open")))
            turns.append(
                (customer, f"{self.episode(next(days))} {self.take(rng.choice(['mood', 'life']))}")
            )
        turns.append((customer, self.take("ask", 2)))
        turns.append(
            (
                helper,
                f"I have put all of it in the file. You will hear from us by {self.slot('soon')}.",
            )
        )
        turns.append(
            (
                customer,
                rng.choice(
                    ["I will believe it when I see it.", "Thank you for listening, at least."]
                ),
            )
        )
        clock = self.when - timedelta(seconds=100 * len(turns))
        lines = []
        for speaker, text in turns:
            lines.append(f"[{clock:%H:%M}] {speaker}: {text}")
            clock += timedelta(seconds=rng.randrange(20, 100))
        return "\n".join(lines)


def spoken(text: str) -> str:
    """The text as a voice transcript: lower case, no punctuation, amounts in words."""
    text = re.sub(r"\$([\d,]+)\.(?!00)(\d\d)", r"\1 dollars and \2 cents", text)
    text = re.sub(r"\$([\d,]+)(\.00)?", r"\1 dollars", text).replace("&", "and")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"[^\w\s']", "", re.sub(r"[-:](?=\w)", " ", text))
    return re.sub(r"\s+", " ", text).strip().lower()


def mistyped(text: str, rng: random.Random) -> str:
    """The text with a typing mistake: two letters swapped, or one left out."""
    found = rng.choice(list(re.finditer(r"\b[a-z]{5,}\b", text)) or [None])
    if found is None:
        return text
    at = rng.randrange(found.start() + 1, found.end() - 2)
    return text[:at] + rng.choice([text[at + 1] + text[at], text[at]]) + text[at + 2 :]


def short(rng: random.Random, writer: Writer, text: str) -> tuple[str, str]:
    """The channel and the text of a short document, with the marks that the channel leaves on the writing."""
    written = ["form", "form", "form", "email"] if DOMAINS[writer.intent] in CONTEXT_POOLS else []
    channel = rng.choice(["chat"] * 9 + ["voice"] * 6 + written)
    if channel == "voice":
        return channel, spoken(text)
    for _ in range(rng.choice([0] * 10 + [1, 1, 2])):
        text = mistyped(text, rng)
    if channel == "chat" and rng.random() < 0.25:
        text = text.lower().rstrip(".")
    if channel == "chat" and rng.random() < 0.15:
        text += " " + rng.choice("🙏🙂🤔" if "?" in text else "🙏👋")
    return channel, text


def document(
    rng: random.Random, when: datetime, kind: str, intent: str, target: int
) -> tuple[str, str]:
    """The channel and the text of one document."""
    writer = Writer(rng, when, intent)
    if kind in {"line", "note"}:
        return short(rng, writer, writer.line() if kind == "line" else writer.note())
    if kind == "transcript":
        return "chat", writer.transcript(target)
    return rng.choice(["email", "email", "form"]), writer.diary(
        target
    ) if kind == "diary" else writer.letter(target)


def plan(rng: random.Random) -> list[tuple[str, str, int]]:
    """Kind, intent and wished number of words of every good document, in random order."""

    def cycle(intents: list[str], count: int) -> list[str]:
        return [
            i for _ in range(count // len(intents) + 1) for i in rng.sample(intents, len(intents))
        ][:count]

    chosen = [("line", intent, 12) for intent in cycle([*LINE_POOLS, *["oos"] * 8], 700)]
    chosen += [("note", intent, 80) for intent in cycle(NOTES, 110) + cycle([*SUBJECT_POOLS], 90)]
    chosen += [
        ("letter", intent, rng.randrange(210, 660)) for intent in cycle([*SUBJECT_POOLS], 71)
    ]
    chosen += [("letter", intent, rng.randrange(900, 1900)) for intent in cycle(PROBLEMS, 8)]
    chosen += [("transcript", intent, rng.randrange(900, 2300)) for intent in cycle(PROBLEMS, 7)]
    chosen += [("diary", intent, rng.randrange(850, 1700)) for intent in cycle(DIARIES, 5)]
    chosen += [
        ("diary", "smart_home", 5000),
        ("diary", "lost_luggage", 3300),
        ("diary", "tire_pressure", 2700),
    ]
    return rng.sample(chosen, len(chosen))


def corpus() -> pa.Table:
    """The whole corpus, bad rows included."""
    rng = random.Random(SEED)
    wanted = iter(plan(rng))
    when, seen = datetime(2026, 2, 23, 7, 30), set()
    rows: list[tuple[str, str, datetime, bytes | None]] = []
    for number in range(1, ROWS + 1):
        when += timedelta(seconds=rng.randrange(60, 13000))
        if number in BAD_ROWS:
            rows.append((f"req-{number:04d}", "form", when, BAD_ROWS[number]))
            continue
        kind, intent, target = next(wanted)
        low, high = next(bounds for limit, bounds in LIMITS.items() if target < limit)
        text = ""
        while not low <= words(text) <= high or spoken(text) in seen:
            channel, text = document(rng, when, kind, intent, target)
        seen.add(spoken(text))
        rows.append((f"req-{number:04d}", channel, when, text.encode()))
    types = [pa.string(), pa.string(), pa.timestamp("s"), pa.binary()]
    columns = [
        pa.array(column, type_)
        for column, type_ in zip(zip(*rows, strict=True), types, strict=True)
    ]
    unchecked = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)
    return pa.table(
        [*columns[:3], pc.cast(columns[3], options=unchecked)],
        ["id", "channel", "received_at", "text"],
    )


if __name__ == "__main__":
    pq.write_table(corpus(), OUTPUT, row_group_size=256, compression="zstd")
    print(f"{OUTPUT}: {ROWS} rows, {OUTPUT.stat().st_size:,} bytes")
