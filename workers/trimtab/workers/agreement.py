"""How all ranks come to switch to a new version at the same step, without a barrier and without waiting."""

from trimtab.workers.peers import Peers


class Agreement:
    """The version that rules each step: the lowest that every rank held when they last compared.

    Each rank sends the number of the version it holds before its backward pass and reads what the others sent at the
    start of the next step, when it has long arrived. Up to 8 ranks compare once a step; 64 take two steps, 512 three,
    in which each passes on the lowest that it has heard of (dissemination, Hensgen, Finkel, Manber 1988, to the base
    8; a minimum may be counted twice). All ranks end with the same minimum, so they agree however late, doubled or out
    of order versions reach them.

    An all-reduce of gloo's did the same for 3 to 6 % of a step of 17 ms on busy cores: its threads have to be given a
    core several times a call.

    With a `lag` what is sent in a step is read so many steps later, so ranks may drift apart by that: strategies that
    do not meet at every step need it. `peers` is None for a rank alone, which agrees at once. Raises GroupLost when a
    rank is gone.
    """

    def __init__(self, peers: Peers | None, lag: int = 1) -> None:
        self.agreed = 0
        self.lag = lag  # [steps], at least 1; to be changed where nothing is under way, at the same step by every rank
        self._peers = peers
        self._round = 0  # of the comparison under way
        self._lowest = 0  # heard of in it
        self._since = 0  # steps since this rank last sent; 0: nothing is under way

    def start(self, agreed: int) -> None:
        """Begin at the version that rules already: newcomers inherit it. Every rank must give the same."""
        self.agreed = agreed

    def step(self, held: int) -> None:
        """Say what this rank holds; to be called by every rank once a step."""
        if self._peers is None:
            self.agreed = max(self.agreed, held)
            return
        self._since += 1
        if self._since > 1:
            return
        if self._round == 0:
            self._lowest = held
        self._peers.send(self._round, self._lowest)

    def result(self) -> int:
        """The version that rules the step that begins; to be called by every rank at each."""
        if self._since >= self.lag:
            self._read()
        return self.agreed

    def settle(self, held: int) -> int:
        """The lowest version that every rank holds now; waits for all of them, as a paused run may."""
        self.drain()
        for _ in range(self._peers.rounds if self._peers else 1):
            self.step(held)
            self._read()
        return self.agreed

    def drain(self) -> None:
        """Leave nothing under way; to be called by every rank at the same step."""
        self._read()
        self._round = 0

    def _read(self) -> None:
        if self._peers is None or not self._since:
            return
        self._since = 0
        self._lowest = min(self._lowest, *self._peers.receive(self._round))
        self._round = (self._round + 1) % self._peers.rounds
        if self._round == 0:
            self.agreed = max(self.agreed, self._lowest)
