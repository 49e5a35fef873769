"""Text that the tasks train on without ``--data``, made from sentences in this folder.

For classification there are real reviews that install from PyPI; for these tasks nothing that is
free, small and whole was found there (2026-11). So the text is made, the same on every machine,
and made to be read: no name and no wording of the test set occurs in the training set, and in
translation no combination of words. A model that learned words by heart scores like the baseline;
one that reads scores well.

    messages        to a shop, each with what it is about: several things or none (multilabel)
    news            sentences with people, organisations and places (token-classification)
    passages        with questions about them, some without an answer (question-answering)
    english_german  sentences and their translations, by a grammar (translation)
"""
