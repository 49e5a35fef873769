"""Messages to a shop, each with what it is about: rows of multi-label classification.

A message is about several things, about one, or about none of them. Each thing has 12 wordings to
train on, 2 to choose on and 6 to test on, so that a model is asked about sentences that it has
never seen; some name a thing that the message is not about ("I need no refund").
"""

from __future__ import annotations

from typing import Any

from fastattn.finetune.demos.words import Chooser, part

SIZES = {"train": 2_000, "validation": 250, "test": 800}
SOURCE = "messages (made-up messages to a shop; wordings held out)"  # for reports

_ABOUT = {
    "account": """
I cannot log in to my account any more.
How do I change the email address you have on file for me?
Your site says my password is wrong, and the reset mail never comes.
Please delete my profile and all my personal data.
My login has been locked since yesterday.
I have two user accounts and would like to merge them.
The app keeps signing me out.
Could you update the phone number in my profile?
Somebody else seems to have used my account.
I registered last week but never got the confirmation mail.
My user name is spelled wrong on your website.
The verification code that you text me is always rejected.
It says there is no user with my address.
After the update of your app I have to register again every day.
I forgot my password and your page does not let me choose a new one.
Signing in with my phone fails with an error.
Why can I not edit the name in my settings?
I want to close my customer profile for good.
My access has been blocked after three attempts.
Two-factor login does not work for me.
""",
    "billing": """
I was charged twice for the {item}.
The invoice shows a higher price than your website did.
There is a payment of {number} euros on my card that I do not recognise.
Please send me a receipt for the {item}.
The discount code was accepted but not taken off the total.
Why did you add a service fee to my bill?
My bank says the direct debit came from you, {number} euros too much.
Can I pay for the {item} by invoice instead of by card?
The VAT number is missing on the invoice.
You keep taking money for a subscription I never ordered.
My card was declined although there is enough money on it.
The amount that you debited is not what we agreed on.
The sum on my statement is wrong.
I have been billed for three of them but bought only one.
I need a corrected invoice for my tax office.
You withdrew the money a second time this month.
The voucher over {number} euros was ignored at checkout.
Paying by credit card ends in an error.
Which bank account shall I transfer the price of the {item} to?
My bill lists a {item} that is not mine.
""",
    "damage": """
The {item} arrived with a crack down the side.
One of the buttons fell off the {item} on the first day.
The {item} does not switch on at all.
There are deep scratches all over the {item}.
The box was crushed and the {item} inside is bent.
After {number} days the {item} stopped working.
The {item} leaks at the bottom.
The glass of the {item} was in pieces when I opened it.
It makes a grinding noise and then gets very hot.
The seam of the {item} has come apart already.
The screen of the {item} stays black.
The handle of the {item} broke off in my hand.
My {item} is defective, the motor just hums.
The {item} was shattered when I unpacked it.
It died after a week and cannot be charged any more.
There is a hole in the {item}.
The {item} is dented and one leg is loose.
Its lid does not close because the hinge is broken.
Smoke came out of the {item} when I plugged it in.
The zip tore the second time I used it.
""",
    "delivery": """
My {item} should have been here {number} days ago.
The tracking page has not changed since last week.
The driver left the parcel in the rain.
Where is my order?
The package went to my old street and came back to you.
I waited at home all day but no courier came.
The carrier says it was handed over, but I never got anything.
When will the {item} be shipped?
Only one of the two boxes has arrived.
The {item} was dropped off at a neighbour I do not know.
It has been stuck in customs for {number} days.
You promised it by Friday and it is still not on its way.
The post office has no record of my shipment.
After {number} days there is still no sign of the {item}.
Nobody rang the bell, yet the note says I was out.
My parcel seems to be lost.
Has the {item} left your warehouse yet?
The courier threw it over the fence.
It is late again, I needed it for a birthday.
Your tracking number is not known to the carrier.
""",
    "cancellation": """
Please cancel my order for the {item}.
I no longer want the {item}, do not send it.
How can I end my subscription?
I ordered the {item} by mistake, please stop the order.
I would like to withdraw from the contract.
Take the {item} out of my order, I changed my mind.
I hereby terminate my membership at the end of the month.
Is it still possible to call off the purchase?
Do not ship it, I have bought one elsewhere.
Please undo the order that I placed this morning.
I want to stop the monthly plan from May on.
Cancel everything that has not been sent yet.
The button for cancelling my order is greyed out.
Kindly annul my purchase of the {item}.
I do not need the {item} any longer, so please scrap the order.
Please terminate my yearly plan.
I clicked buy too early and want to call the order off.
Let me out of the contract as soon as possible.
Remove the {item} from what I ordered yesterday.
I am not going to renew, so end the subscription.
""",
    "praise": """
Your staff on the phone was wonderful.
I am very happy with the {item}.
Thank you for the fast and friendly help.
The {item} is even better than I had hoped.
Best shop I have ever bought from.
My daughter loves the {item}.
You solved it within minutes, well done.
The quality of the {item} is outstanding.
I will certainly recommend you to my friends.
What a lovely surprise the handwritten card was.
Five stars from me.
Everything was perfect, as always.
I could not be more pleased with it.
The {item} looks gorgeous in our hall.
A big compliment to your team.
Great service, keep it up!
We have used the {item} every day and adore it.
Your colleague was so kind and patient.
Superb workmanship, it was worth every cent.
I am delighted, this is exactly what I wanted.
""",
    "refund": """
I want my money back.
When will I get the {number} euros for the {item} that I sent back?
Please return the amount to my card.
You owe me a refund since {month}.
I sent the {item} back and have heard nothing about the repayment.
I expect the full price to be paid back.
Can I have the money instead of a voucher?
The repayment for the {item} was {number} euros short.
Which form do I need to get reimbursed?
I returned everything and still wait for my money.
Give me back what I paid for the {item}.
How long does a reimbursement take?
Kindly refund the purchase price.
The credit for the returned {item} has not reached my bank.
I insist on being reimbursed for the {item}.
I would rather have the cash back than another one.
Transfer the {number} euros back to me, please.
I have been waiting for repayment since {month}.
Am I entitled to a full refund?
You have kept my money although the {item} is back with you.
""",
    "question": """
Does the {item} also come in blue?
How wide is the {item}?
Will the {item} be in stock again in {month}?
Can the {item} be washed at forty degrees?
Is the {item} suitable for children under six?
What material is the {item} made of?
Does the {item} run on batteries?
Which size should I choose if I am {number} centimetres taller than the model?
Is there a manual for the {item} in English?
Can I use the {item} outdoors in winter?
What is the difference between the old {item} and the new one?
How much does the {item} weigh?
Do you sell spare parts for the {item}?
Is the {item} dishwasher safe?
What are the measurements of the {item}?
Which colours do you have it in?
Does it need special light bulbs?
Will it fit into a small car?
Is the fabric free of wool?
Would the {item} carry {number} kilograms?
""",
}

# About none of them, although most name one.
_NEUTRAL = """
I bought a {item} from you in {month}.
My customer number ends in {number}.
I live on the third floor.
My order number starts with {number}.
The delivery itself was on time.
I need no refund.
There is nothing wrong with my bill.
I do not want to cancel anything.
I am writing to you for the first time.
My neighbour has the same {item}.
We moved house in {month}.
I saw your advertisement on the train.
The {item} itself is fine.
I have already paid.
You can reach me in the evening.
It is meant as a present for my brother.
The parcel arrived yesterday.
I can log in without trouble.
It was ordered in {month} together with a book.
I do not ask for my money.
""".strip().splitlines()

_ITEMS = """
lamp kettle chair rucksack jacket tent bicycle printer headset blender table mirror toaster carpet
sofa watch camera drill keyboard suitcase pillow mixer scarf heater bookcase fan radio helmet desk
"""
_MONTHS = ["January", "March", "April", "June", "July", "September", "October", "December"]
_GREETINGS = ["Hello,", "Good morning,", "Dear team,", "Hi there.", ""]
_CLOSINGS = ["Kind regards", "Please answer soon.", "Greetings", "", ""]


def rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a set, one of ``SIZES``."""
    choose = Chooser(f"messages {name}")
    items = part(_ITEMS.split(), name)
    neutral = part(_NEUTRAL, name)
    about = {label: _wordings(text, name) for label, text in _ABOUT.items()}
    found: dict[str, dict[str, Any]] = {}
    while len(found) < SIZES[name]:
        labels = choose.some(sorted(about), choose.one([0, 1, 1, 1, 2, 2, 3]))
        sentences = [choose.one(about[label]) for label in labels]
        sentences += choose.some(neutral, choose.number(0 if labels else 1, 2))
        body = choose.some(sentences, len(sentences))
        whole = " ".join([choose.one(_GREETINGS), *body, choose.one(_CLOSINGS)])
        filled = whole.format(
            item=choose.one(items), number=choose.number(2, 60), month=choose.one(_MONTHS)
        )
        found.setdefault(filled, {"text": filled.strip(), "labels": sorted(labels)})
    return list(found.values())


def _wordings(text: str, name: str) -> list[str]:
    """The first 12 of 20 wordings are for training, the next 2 for validation."""
    lines = text.strip().splitlines()
    first, last = {"train": (0, 12), "validation": (12, 14), "test": (14, 20)}[name]
    return lines[first:last]
