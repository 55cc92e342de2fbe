"""Requests with an `Idempotency-Key`: sent again they are answered again and not done again."""

import threading
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.utils import timezone
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.viewsets import ViewSet

from tests.factories import UserFactory
from xrayplatform.http import Conflict
from xrayplatform.idempotency import HEADER, KEPT_FOR, UNDER_WAY_FOR, IdempotentAnswer, IdempotentMixin

done = []


class Full(APIException):
    status_code = 503


class OrderViewSet(IdempotentMixin, ViewSet):
    """Does something that must not be done twice, or fails in the way that it is told to."""

    permission_classes = [IsAuthenticated]
    parser_classes = [JSONParser, FormParser, MultiPartParser]
    failures = {"wrong": ValidationError({"a": ["b"]}), "later": Conflict("not now"), "full": Full(), "bug": KeyError()}

    def create(self, request):
        done.append(request.data)
        failure = self.failures.get(request.data.get("fail"))
        if failure:
            raise failure
        content = request.FILES["image"].read().decode() if "image" in request.FILES else ""
        return Response({"number": len(done), "content": content}, status=201)


@pytest.fixture(autouse=True)
def nothing_done():
    done.clear()


@pytest.fixture
def order(bob):
    view = OrderViewSet.as_view({"post": "create"})

    def send(data=None, key="k", user=bob, path="/orders/", format="json"):
        headers = {} if key is None else {HEADER: key}
        request = APIRequestFactory().post(path, data or {"a": 1}, format=format, headers=headers)
        force_authenticate(request, user)
        return view(request)

    return send


def test_the_same_request_again_is_answered_from_what_was_stored(order):
    first, again = order(), order()
    assert (first.status_code, first.data) == (again.status_code, again.data) == (201, {"number": 1, "content": ""})
    assert "Idempotency-Replayed" not in first and again["Idempotency-Replayed"] == "true"
    assert len(done) == 1


def test_without_a_key_each_request_is_done(order):
    assert [order(key=None).data["number"] for _ in range(2)] == [1, 2]
    assert not IdempotentAnswer.objects.exists()


def test_a_key_is_one_users_for_one_address(order, alice):
    answers = [order(), order(user=alice), order(path="/others/"), order(key="other")]
    assert [answer.data["number"] for answer in answers] == [1, 2, 3, 4]


def test_a_key_that_is_used_for_another_body_is_refused(order):
    order()
    for other in ({"a": 2}, {"a": 1, "b": 1}):
        answer = order(other)
        assert (answer.status_code, answer.data["code"]) == (422, "idempotency-key-reused")
    assert order(path="/orders/?x=1").status_code == 422
    assert len(done) == 1


def test_a_form_is_the_same_whatever_its_boundary_and_its_file_is_read_by_the_action_too(order):
    def send(content=b"abc", name="a.png", **fields):
        return order({"image": SimpleUploadedFile(name, content), **fields}, format="multipart")

    assert send(x=1).data == send(x=1).data == {"number": 1, "content": "abc"}
    assert [send(b"abd", x=1).status_code, send(name="b.png", x=1).status_code, send(x=2).status_code] == [422] * 3


def test_parts_that_only_look_alike_when_they_are_put_together_are_not_the_same(order):
    def send(name, content):
        return order({"image": SimpleUploadedFile(name, content)}, format="multipart")

    assert send("ab", b"c").status_code == 201
    assert send("a", b"bc").status_code == 422


def test_while_one_works_the_other_is_told_when_to_come_back(order, bob):
    order()
    IdempotentAnswer.objects.update(status=None, body=None)
    answer = order()
    assert (answer.status_code, answer["Retry-After"]) == (409, "2")
    assert IdempotentAnswer.objects.count() == 1 and len(done) == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_works_and_the_other_is_told_to_wait(monkeypatch):
    user = UserFactory()
    working, may_end = threading.Event(), threading.Event()
    view = OrderViewSet.as_view({"post": "create"})

    def send():
        request = APIRequestFactory().post("/orders/", {"a": 1}, format="json", headers={HEADER: "k"})
        force_authenticate(request, user)
        return view(request)

    def slowly(self, request):
        working.set()
        assert may_end.wait(10)
        return Response({"number": 1}, status=201)

    def first():
        answers.append(send())
        connection.close()

    answers = []
    monkeypatch.setattr(OrderViewSet, "create", slowly)
    thread = threading.Thread(target=first)
    thread.start()
    assert working.wait(10)
    meanwhile = send()
    may_end.set()
    thread.join()
    assert (meanwhile.status_code, meanwhile["Retry-After"]) == (409, "2")
    assert answers[0].status_code == 201 and send().data == answers[0].data


def test_who_died_at_work_blocks_the_key_for_a_while_only(order):
    order()
    IdempotentAnswer.objects.update(status=None, body=None, created_at=timezone.now() - UNDER_WAY_FOR * 1.01)
    assert order().status_code == 201
    assert len(done) == 2 and IdempotentAnswer.objects.get().status == 201


def test_a_refusal_that_would_be_the_same_is_stored_and_given_again(order):
    first, again = order({"fail": "wrong"}), order({"fail": "wrong"})
    assert first.status_code == again.status_code == 400 and first.data == again.data
    assert again.content_type == "application/problem+json" and len(done) == 1


@pytest.mark.parametrize(("fail", "status"), [("later", 409), ("full", 503)])
def test_what_may_end_otherwise_the_next_time_is_not_stored(order, fail, status):
    assert [order({"fail": fail}).status_code for _ in range(2)] == [status, status]
    assert len(done) == 2 and not IdempotentAnswer.objects.exists()


def test_an_error_that_nobody_reckoned_with_frees_the_key(order):
    for _ in range(2):
        with pytest.raises(KeyError):
            order({"fail": "bug"})
    assert len(done) == 2 and not IdempotentAnswer.objects.exists()


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "a\tb"])
def test_a_key_that_nobody_can_mean_is_refused(order, key):
    answer = order(key=key)
    assert answer.status_code == 400 and HEADER in answer.data["errors"] and not done


def test_who_is_not_let_in_leaves_no_key(order):
    assert order(user=None).status_code in (401, 403)
    assert not IdempotentAnswer.objects.exists()


def test_answers_are_kept_for_a_day(order):
    order()
    IdempotentAnswer.objects.update(created_at=timezone.now() - KEPT_FOR - timedelta(minutes=1))
    assert order().data["number"] == 2
    IdempotentAnswer.objects.update(created_at=timezone.now() - KEPT_FOR - timedelta(minutes=1))
    IdempotentAnswer.objects.forget()
    assert not IdempotentAnswer.objects.exists()
