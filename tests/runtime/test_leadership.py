"""One coordinator per fleet: found out before it speaks, after every reconnect, and on brokers that do not say why."""

import queue
import threading

import pytest

from hermes_iot.errors import IdConflict
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import CoordinatorStatus, ModelHead
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import leadership
from hermes_iot.runtime.leadership import Leadership, Legacy, look_for_leader
from hermes_iot.transport.base import Delivery
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from tests.support.fleet import PATIENCE_S, in_memory

TOPICS = Topics("lab")
LEADER = TOPICS.all("coordinator")


def status(state="online", session="aaaa", host="bench", epoch=0):
    return codec.encode_json(CoordinatorStatus(state=state, session=session, run="r-1", host=host, epoch=epoch))


class Client:
    """Another client of the broker."""

    def __init__(self, broker, *filters):
        self.heard = queue.SimpleQueue()
        self.transport = MemoryTransport(broker, client_id="somebody")
        self.transport.subscribe(filters)
        self.transport.start(self._on_event, timeout_s=1)

    def _on_event(self, event):
        if isinstance(event, Delivery):
            self.heard.put(event)

    def says(self, topic, payload, *, retain=True):
        assert self.transport.publish(topic, payload, retain=retain)


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(leadership, "SILENT_S", 0.2)


def look(broker, *, takeover=False):
    return look_for_leader(TOPICS, in_memory(broker), takeover=takeover)


def test_an_empty_broker_has_no_leader_and_no_keyframe(broker):
    assert look(broker) == Legacy()


def test_a_leader_that_left_is_no_hindrance(broker):
    Client(broker).says(LEADER, status("offline"))
    assert look(broker) == Legacy()


def test_a_leader_that_speaks_is_not_to_be_disturbed(broker):
    leader = Client(broker)
    leader.says(LEADER, status())
    spoken = threading.Timer(0.05, leader.says, args=[LEADER, status()])
    spoken.start()
    with pytest.raises(IdConflict, match=r"already led from host 'bench' \(run 'r-1'\)\. .*--takeover") as caught:
        look(broker)
    spoken.join()
    assert caught.value.exit_code == 7


@pytest.mark.usefixtures("impatient")
def test_a_leader_that_is_only_remembered_is_taken_for_dead_and_its_word_back(broker):
    Client(broker).says(LEADER, status())
    assert look(broker) == Legacy()
    left = codec.decode_json(broker.retained[LEADER], CoordinatorStatus, Limits())
    assert (left.state, left.session) == ("offline", "aaaa")


def test_a_leader_that_leaves_while_we_look_is_no_hindrance(broker):
    leader = Client(broker)
    leader.says(LEADER, status())
    left = threading.Timer(0.05, leader.says, args=[LEADER, status("offline")])
    left.start()
    assert look(broker) == Legacy()
    left.join()


def test_taking_over_asks_nobody_and_waits_for_nothing(broker):
    Client(broker).says(LEADER, status())
    assert look(broker, takeover=True) == Legacy()
    assert broker.retained[LEADER] == status()


def test_looking_tells_how_many_keyframe_chunks_lie_about(broker):
    head = ModelHead(run="r-1", version=3, sha256="0" * 64, bytes=10_000, parts=7)
    Client(broker).says(TOPICS.all("model"), codec.encode_json(head))
    assert look(broker).keyframe_parts == 7


def test_looking_tells_the_last_leaders_epoch(broker):
    Client(broker).says(LEADER, status("offline", epoch=7))
    assert look(broker) == Legacy(epoch=7)


@pytest.mark.parametrize("junk", [b"{}", b"\xff\x00", b"[]", status()[:-5]])
def test_what_cannot_be_read_counts_for_nothing(broker, junk):
    client = Client(broker)
    client.says(LEADER, junk)
    client.says(TOPICS.all("model"), junk)
    assert look(broker) == Legacy()


def test_looking_says_nothing_that_a_coordinator_listens_to(broker):
    coordinator = Client(broker, *TOPICS.of_coordinator(), LEADER)
    look(broker)
    assert coordinator.heard.empty()


# --- over reconnects ------------------------------------------------------------------------------------------------


class Line:
    """A transport that only remembers what was published."""

    def __init__(self):
        self.published = []

    def publish(self, topic, _payload, **_options):
        self.published.append(topic)
        return True


@pytest.fixture
def claim():
    return Leadership(TOPICS, client_id="lab-coordinator", session="mine")


def said(session, state="online", *, host="bench", retain=False, epoch=0):
    payload = status(state, session=session, host=host, epoch=epoch)
    return Delivery(topic=LEADER, payload=payload, retain=retain)


FENCE = TOPICS.down("lab-coordinator", "cmd")


def test_the_first_connection_may_speak_at_once(claim):
    line = Line()
    assert claim.connected(line, now=0.0)
    assert line.published == []


def test_others_words_before_our_first_one_do_not_matter(claim):
    claim.connected(Line(), now=0.0)
    assert not claim.heard(said("theirs"), now=1.0)
    assert not claim.heard(said("mine"), now=1.0)


def test_anothers_word_after_ours_means_that_the_fleet_is_anothers(claim):
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine"), now=1.0)
    with pytest.raises(IdConflict, match="another coordinator took over fleet 'lab': it runs on host 'bench'"):
        claim.heard(said("theirs"), now=1.0)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_last_will_of_one_that_died_before_its_first_word_takes_nobodys_lead(claim, epoch):
    """It left no word behind, so the next coordinator has the same epoch; its will may be said long after."""
    claim.epoch = epoch
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine", epoch=epoch), now=1.0)
    assert claim.heard(said("theirs", "offline", epoch=epoch), now=2.0), "it has overwritten our word: say it again"
    claim.connected(Line(), now=3.0)
    assert not claim.heard(said("theirs", "offline", epoch=epoch), now=3.0), "first it is looked"
    assert claim.heard(Delivery(topic=FENCE, payload=b"{}"), now=3.0)


@pytest.mark.parametrize("state", ["online", "offline"])
def test_the_word_of_one_we_took_over_from_is_spoken_over(claim, state):
    claim.epoch = 5
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine", epoch=5), now=1.0)
    assert claim.heard(said("theirs", state, epoch=4), now=2.0)
    with pytest.raises(IdConflict):
        claim.heard(said("theirs", epoch=5), now=3.0)


@pytest.mark.parametrize("retain", [False, True])
def test_a_higher_epoch_is_believed_at_once(claim, retain):
    claim.epoch = 5
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine", epoch=5), now=1.0)
    with pytest.raises(IdConflict):
        claim.heard(said("theirs", retain=retain, epoch=6), now=2.0)


def test_after_a_reconnect_it_looks_before_it_speaks(claim):
    line = Line()
    claim.connected(line, now=0.0)
    claim.heard(said("mine"), now=1.0)
    assert not claim.connected(line, now=1.0)
    assert line.published == [FENCE]
    assert not claim.heard(said("mine", "offline"), now=1.0), "our own will is not another's word"
    assert claim.heard(Delivery(topic=FENCE, payload=b"{}"), now=1.0), "nobody has spoken after us"
    assert not claim.heard(Delivery(topic=FENCE, payload=b"{}"), now=1.0), "a repetition says nothing new"
    assert claim.next_deadline() is None


def test_where_our_own_word_is_kept_from_us_we_speak_after_a_while(claim):
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine"), now=1.0)
    claim.connected(Line(), now=1.0)
    due = claim.next_deadline()
    assert 1.0 < due <= 10.0
    assert not claim.expire(now=due - 0.1)
    assert claim.expire(now=due)
    assert not claim.expire(now=due + 1)


def test_a_connection_that_is_lost_while_we_look_is_looked_into_again(claim):
    line = Line()
    claim.connected(line, now=0.0)
    claim.heard(said("mine"), now=1.0)
    claim.connected(line, now=1.0)
    claim.disconnected()
    assert claim.next_deadline() is None
    assert not claim.connected(line, now=2.0)
    assert claim.heard(Delivery(topic=FENCE, payload=b"{}"), now=1.0)


@pytest.fixture
def back(claim):
    """A leader that has spoken, and is connected anew at 1 s."""
    claim.connected(Line(), now=0.0)
    claim.heard(said("mine"), now=0.0)
    claim.connected(Line(), now=1.0)
    return claim


def fence(claim):
    return claim.heard(Delivery(topic=FENCE, payload=b"{}"), now=1.0)


def test_F02_a_broker_that_comes_back_with_our_predecessors_last_word_takes_nobodys_lead(back):
    assert not back.heard(said("theirs", "offline", retain=True), now=1.0)
    assert fence(back), "who has left leads nothing"


def test_F02_a_leader_that_is_only_remembered_by_the_broker_is_listened_for_and_does_not_lead(back):
    assert not back.heard(said("theirs", retain=True), now=1.0)
    assert not fence(back), "first it must be clear that nobody is there"
    due = 1.0 + leadership.SILENT_S
    assert back.next_deadline() == due
    assert not back.expire(now=due - 0.1)
    assert back.expire(now=due)
    assert back.next_deadline() is None


def test_a_leader_that_is_remembered_and_speaks_does_lead(back):
    back.heard(said("theirs", retain=True), now=1.0)
    with pytest.raises(IdConflict):
        back.heard(said("theirs"), now=2.0)


def test_a_leader_that_has_said_another_word_since_we_were_pushed_out_does_lead(back):
    back.heard(said("theirs", retain=True), now=1.0)
    back.disconnected()
    back.connected(Line(), now=2.0)
    back.heard(said("theirs", retain=True), now=2.0)
    assert not fence(back), "the same word says nothing new"
    with pytest.raises(IdConflict):
        back.heard(said("theirs", host="moved", retain=True), now=3.0)


def test_patience_is_longer_than_a_leaders_silence():
    assert PATIENCE_S >= leadership.FENCE_S
    assert leadership.SILENT_S >= 5.0, "a coordinator speaks every 2 s"
