"""The seeds of a text's utterances."""


from chatterbox_opt.engine.seeds import piece_seed

WRITTEN = [8645644519188837984, 8984116172609949823, 5158077907736568049]


def test_a_short_texts_seed_is_its_own():
    for seed in (0, 1, 7, 2**64 - 1):
        assert piece_seed(seed, 0) == seed


def test_a_pieces_seed_is_the_same_in_every_process():
    """For seeds of any size that torch takes. The numbers are fixed here, because users rely on them."""
    assert [piece_seed(seed, index) for seed, index in ((1, 1), (2, 1), (1, 2))] == WRITTEN
    assert all(0 <= piece_seed(2**64 - 1, index) < 2**64 for index in range(100))
