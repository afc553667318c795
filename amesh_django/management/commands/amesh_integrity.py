"""``manage.py amesh_integrity``: verify the sealed allow list, show what differs, and accept the list as it is."""

import time
from argparse import ArgumentParser

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.conf import amesh_settings
from amesh_django.enrollment import tokens
from amesh_django.fleet import servers
from amesh_django.management.base import AmeshCommand
from amesh_django.trust.integrity import IntegrityReport
from amesh_django.trust.revocations import Revocation
from amesh_django.trust.rollback import Memory
from amesh_django.trust.verified import other_secret
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.spec import add_yes
from authmesh.commands.terminal.console import Console
from authmesh.commands.terminal.errors import Declined, Unanswered, UsageProblem
from authmesh.commands.terminal.lines import Shown, Styled
from authmesh.commands.words import counted
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, AmeshError, Hint, Run

#: How many trusted devices are printed. ``--json`` prints all.
_MAX_NAMED = 100


class WordsChanged(AllowListError):
    """What hubs have said was changed outside Django."""

    code = "hub_words_changed"
    default_message = (
        "The list matches its seal, but what hubs have said was changed outside Django. Nothing was changed."
    )
    default_hint = (
        "Find out who changed it. To accept the rows that amesh wrote, run ",
        Run("integrity", "--reseal"),
        ".",
    )


def integrity(context: Context, *, reseal: bool, digest: str | None, rekey: bool, yes: bool) -> None:
    """Verify every row, show what differs, and reseal exactly what was shown if a person says so."""
    if digest is not None and not reseal:
        raise UsageProblem("--digest is only used with --reseal. Nothing was changed.")
    if rekey:
        if reseal:
            raise UsageProblem("--rekey and --reseal exclude each other. Nothing was changed.")
        if len(amesh_settings().seal_secrets) < 2:
            raise UsageProblem(
                "There is only one secret of the seal, so there is nothing to replace. Nothing was changed.",
                hint="Set AMESH['SEAL_KEY_FILES'] to [new file, old file] on all hosts, and restart all processes. None stands for "
                "the key of this server. Then run this command again.",
            )
    context.own_device()
    devices = DatabaseAllowList(by=context.home.actor)
    found = devices.verify()
    console = context.console
    answer: dict[str, object] = {
        "ok": found.ok,
        "devices": found.devices,
        "problems": found.problems,
        "digest": found.digest,
        "resealed": False,
        "newest": _memory_json(devices),
    }
    report = _valid(found, devices.memory()) if found.ok else _invalid(found)
    if reseal or not found.ok:
        answer["trusted"] = found.trusted
        report += _trusted(found)
    if found.hubs:
        answer["hubs"] = found.hubs
        report += _hubs(found, reseal)
    lost = devices.lost_revocations()
    if lost:
        answer["lostRevocations"] = [one.device_id for one in lost]
        report += _lost(lost)
    console.say(*report)
    if found.ok and rekey:
        _rekey(console, devices, answer, yes)
        return
    if found.ok and not found.hubs and not reseal:
        console.result(answer)
        return
    try:
        if found.ok and not reseal:
            raise WordsChanged()
        if not reseal:
            raise AllowListIntegrityFailure(f"{_problem(found)}. Nothing was changed.", hint=_advice(found))
        question = "Trust the rows as they are, and reseal the list?"
        console.confirm(question, about=report if console.as_json else [], yes=yes)
        devices.reseal(digest=found.digest if digest is None else digest)
    except AmeshError:
        console.result(answer)
        raise
    console.say(Styled("The list was resealed as it is.", "good"))
    if lost:
        answer["revokedAgain"] = _revoke_again(console, devices, lost, yes)
    if found.is_old:
        others = "other hosts have revoked since" if lost else "were revoked since"
        console.say(f"Now revoke again the devices that {others}.")
    console.result({**answer, "resealed": True, "newest": _memory_json(devices)})


def _hubs(found: IntegrityReport, reseal: bool) -> list[Shown]:
    """Return what is wrong with what hubs have said, and what resealing does about it."""
    lines: list[Shown] = [
        Styled("What hubs have said was changed outside Django. No request is rejected for that:", "bad"),
        *[f"  {clean_line(text)}" for text in found.hubs[:_MAX_NAMED]],
    ]
    if reseal:
        lines.append(
            "Resealing removes the rows that amesh did not write, and accepts the others as all that there are. A hub whose own row was "
            "changed sends all its revocations again."
        )
    return lines


def _revoke_again(console: Console, devices: DatabaseAllowList, lost: list[Revocation], yes: bool) -> list[str]:
    """Revoke the devices again whose revocation the restored list does not have, if a person says so. Return their IDs."""
    names = [one.device_id for one in lost]
    try:
        console.confirm(
            f"Revoke {counted(len(lost), 'device')} again?", about=_lost(lost) if console.as_json else [], yes=yes
        )
    except (Declined, Unanswered):
        console.warn(("They are still trusted. To revoke them, run ", Run("revoke", " ".join(names)), "."))
        return []
    for one in lost:
        devices.revoke(one.device_id, reason=one.reason or "revoked before an older list was restored")
    console.say(Styled(f"Revoked again: {', '.join(names)}.", "good"))
    return names


def _lost(lost: list[Revocation]) -> list[Shown]:
    return [
        f"{counted(len(lost), 'device')} of this list was revoked on this host before, and is trusted again:"
        if len(lost) == 1
        else f"{counted(len(lost), 'device')} of this list were revoked on this host before, and are trusted again:",
        *[
            f"  {clean_line(one.device_id)} ({clean(one.name)}), revoked {one.at[:19]} UTC"
            + (f" by {clean_line(one.by)}" if one.by else "")
            + (f": {clean_line(one.reason)}" if one.reason else "")
            for one in lost
        ],
    ]


def _rekey(console: Console, devices: DatabaseAllowList, answer: dict[str, object], yes: bool) -> None:
    try:
        about: list[Shown] = [
            "The list will be sealed with the first secret of AMESH['SEAL_KEY_FILES']. Processes that do not know it, because they were "
            "not restarted yet, will reject all requests."
        ]
        console.confirm("Do all processes of all hosts know both secrets?", about=about, yes=yes)
        changed = devices.rekey()
        servers.renew_all()
    except AmeshError:
        console.result({**answer, "rekeyed": False})
        raise
    if changed:
        console.say(Styled("The list and its audit log are sealed with the first secret now.", "good"))
    else:
        console.say("The list and its audit log were sealed with the first secret already. Nothing was changed.")
    console.say(
        (
            "Run ",
            Run("integrity", "--rekey"),
            " on every other host, too: it moves the high-water mark of that host. Then remove the old secret from the settings.",
        )
    )
    old = tokens.under_old_secret(time.time())
    if old:
        named = ", ".join(f"{clean(row.name)} ({row.jti})" for row in old[:_MAX_NAMED])
        console.warn(
            (
                f"{counted(len(old), 'open enrollment token')} made with the old secret: {named}. Once the old secret is removed, no "
                "machine can enroll with such a token. Until then, wait for the machines, or make new tokens with ",
                Run("enroll-token"),
                ".",
            )
        )
    console.result(
        {
            **answer,
            "rekeyed": changed,
            "tokensUnderOldSecret": [row.jti for row in old],
            "newest": _memory_json(devices),
        }
    )


def _advice(found: IntegrityReport) -> Hint:
    accept = ("accept the rows as they are with ", Run("integrity", "--reseal"), ".")
    if found.reason == "seal_mismatch":
        return (f"{other_secret()} If this is the only host, restore the right device directory or file, or ", *accept)
    return ("Undo the change, or ", *accept)


def _valid(found: IntegrityReport, memory: Memory) -> list[Shown]:
    rows = counted(found.devices, "row")
    return [Styled(f"The list matches its seal: {rows}, including revoked devices.", "good"), _newest(memory)]


def _invalid(found: IntegrityReport) -> list[Shown]:
    return [
        Styled(f"{_problem(found)} ({counted(found.devices, 'row')}). All requests are rejected.", "bad"),
        *[f"  {problem}" for problem in found.problems],
    ]


def _trusted(found: IntegrityReport) -> list[Shown]:
    """Return whom resealing would trust: nothing else tells that if the audit log was changed, too."""
    if not found.digest:  # the rows cannot be read, so they cannot be resealed
        return []
    if not found.trusted:
        return ["Resealing would trust no device.", *_groups(found)]
    again = " Devices that were revoked since are trusted again:" if found.is_old else ""
    report: list[Shown] = [
        f"Resealing would trust {counted(len(found.trusted), 'device')}{'.' if again else ':'}{again}"
    ]
    report += [f"  {device}" for device in found.trusted[:_MAX_NAMED]]
    if len(found.trusted) > _MAX_NAMED:
        report.append(
            (f"  and {len(found.trusted) - _MAX_NAMED} more. To see all, run ", Run("integrity", "--json"), ".")
        )
    report += _groups(found)
    if found.ok:  # after a restore: servers that have seen a newer list accept this one once its revision is higher
        report.append("Resealing makes this list newer than any list that a server has seen.")
    return report


def _groups(found: IntegrityReport) -> list[Shown]:
    if not found.groups:
        return []
    return [f"It would accept {counted(len(found.groups), 'group')} of devices:", *[f"  {one}" for one in found.groups]]


def _problem(found: IntegrityReport) -> str:
    if found.reason in ("rolled_back", "other_epoch", "revision_lost"):
        return "The list is not known to be the newest that this server has seen"
    return "The list does not match its seal"


def _memory_json(devices: DatabaseAllowList) -> dict[str, object]:
    memory = devices.memory()
    return {"revision": memory.revision, "kept": memory.kept}


def _newest(memory: Memory) -> str:
    if memory.revision is None:
        return "This server has not recorded a newest list yet."
    text = f"It is the newest list that this server has seen (revision {memory.revision} or later), according to {memory.where}"
    if memory.kept == "tpm":
        return f"{text} and a counter in the TPM."
    return f"{text}. Without a TPM, restoring that file together with the database cannot be detected."


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--reseal", action="store_true", help="Accept the rows as they are and reseal the list, after a question."
    )
    parser.add_argument(
        "--digest",
        help="Reseal only if the rows are still those for which --json printed this digest.",
    )
    parser.add_argument(
        "--rekey",
        action="store_true",
        help="Seal the list with the first secret of AMESH['SEAL_KEY_FILES'], after a question.",
    )
    add_yes(parser)


class Command(AmeshCommand):
    spec = Spec(
        "integrity",
        "Verify the sealed list of trusted devices, and show what differs.",
        integrity,
        _arguments,
        details=(
            "The exit code is 1 if the list does not match its seal and was not resealed.",
            "--reseal seals exactly the rows that it shows. If they change before the answer, nothing is sealed. To look first and "
            "reseal later without a question, pass the digest of --json: --reseal --digest DIGEST --yes.",
        ),
        asks=True,
    )
