"""The worker of the queue, as far as it sends mails."""

from django_q.models import OrmQ, Schedule

from xrayplatform import tasks
from xrayplatform.notifications import SEND


def send_waiting_mails() -> int:
    """Run the tasks of the mails that wait in the queue. Returns how many."""
    waiting = [message for message in OrmQ.objects.order_by("pk") if message.task["func"] == SEND]
    for message in waiting:
        tasks.send_mail(*message.task["args"])
        message.delete()
    return len(waiting)


def later_mails() -> list[Schedule]:
    """Those that failed and are to be tried again at `next_run`."""
    return list(Schedule.objects.filter(func=SEND))
