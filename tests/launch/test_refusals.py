"""What launch/tpu_pod.sh makes of a refusal of gcloud: its kind, and how long it waits."""

import re
import subprocess

from tests.conftest import ROOT
from tests.launch.watch import AWAY, QUOTA_0, QUOTA_USED


def test_kinds_of_refusals():
    """What passes is tried for ever; what does not is an error of the user."""
    kinds = {
        "busy": [
            QUOTA_USED,
            AWAY,
            "HttpError 429: Too Many Requests",
            "code 500: Internal error occurred [EID: 0x1]",
            "There is no more capacity in the zone us-a; you can try in another zone",
            "Quota 'TPUV4sPreemptible' exhausted. Limit 20800 in region us-central2",
            "ERROR: (gcloud.a.b) PERMISSION_DENIED: rateLimitExceeded",
            "403 rateLimitExceeded: Quota exceeded for quota metric 'Requests'",
            "Connection reset by peer",
            "DEADLINE_EXCEEDED: Deadline expired before operation could complete.",
            "no answer of gcloud within 300 s",
            "(gcloud.compute.tpus.queued-resources.create) UNAVAILABLE: zone us-a is not supported",
            '{"error": {"code": 503, "status": "UNAVAILABLE", "message": "not found"}}',
        ],
        "login": [
            "Reauthentication failed. cannot prompt during non-interactive execution.",
            "('invalid_grant: Bad Request', {'error': 'invalid_grant'})",
            "You do not currently have an active account selected.",
        ],
        "user": [
            QUOTA_0,
            'Quota exceeded: {"quota_limit_value": "0"}',
            "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p'",
            "Permission denied on 'locations/us-nowhere1-a' (or it may not exist).",
            "This API method requires billing to be enabled.",
            "Cloud TPU API has not been used in project p before or it is disabled. If you "
            "enabled this API recently, wait a few minutes and retry.",
            "Cloud TPU received a bad request. The accelerator v4-9 was not found in zone us-a",
            "INVALID_ARGUMENT: 'v99' is not a valid acceleratorType",
            "The required property [zone] is not currently set.",
            "NOT_FOUND: Reservation was not found",
            # the message of a user's error may have any word
            "(gcloud.compute.tpus.a.create) INVALID_ARGUMENT: no capacity type 'spott'",
            "ERROR: (gcloud.a.b) PERMISSION_DENIED: capacity of 500 chips; deadline exhausted",
            "WARNING: connection is slow\nERROR: (gcloud.a.b) NOT_FOUND: connection unavailable",
            "(gcloud.a.b) argument --spot: not allowed with capacity currently not exhausted",
            "HttpError 404: no capacity",
            "The capacity 500 of a reservation is unknown",
        ],
        "unknown": ["", "FAILED_PRECONDITION: the moon is full"],
    }
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    (function,) = re.findall(r"^kind\(\) \{.*?^\}$", script, re.DOTALL | re.MULTILINE)
    texts = [(kind, text) for kind, all_of in kinds.items() for text in all_of]
    shell = f'set -euo pipefail\n{function}\nfor text in "$@"; do kind "$text"; done'
    done = subprocess.run(
        ["bash", "-c", shell, "kind", *[text for _, text in texts]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(zip(done.stdout.split(), [text for _, text in texts], strict=True)) == texts


def test_waits_double_up_to_a_cap():
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    (function,) = re.findall(r"^back_off\(\) \{.*?^\}$", script, re.DOTALL | re.MULTILINE)
    shell = f'{function}\nsay() {{ :; }}; nap() {{ echo "$1"; }}; poll=30 MAX_WAIT=20 said=""\n'
    shell += "for n in 1 2 3 4 5 6 7 900; do back_off $n why; done"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    waits = [float(line) for line in done.stdout.split()]
    for wait, middle in zip(waits, [30, 60, 120, 240, 480, 600, 600, 600], strict=True):
        assert 0.74 * middle <= wait <= 1.26 * middle
