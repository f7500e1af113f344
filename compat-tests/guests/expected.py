"""Lists of the cases of a suite that fail on a share, each with its reason: `case  # reason`, one per line, in
`compat-tests/expected/SUITE-SHARE.txt`. A run must fail in exactly these cases, so that neither a new failure nor a
pass that nobody expected goes by. Where the guest's timing decides, the reason begins with `either way: `.

A share without a list is expected to pass everything. `reasons.toml` beside the lists gives a new line its reason, by
the name of the case and by what the case said, when the lists are written anew from a run.
"""

import fnmatch
import os
import re
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
DIRECTORY = os.path.join(os.path.dirname(HERE), "expected")
RULES = os.path.join(DIRECTORY, "reasons.toml")
SHOWN = 30
EITHER = "either way: "


def path_of(suite, share):
    return os.path.join(DIRECTORY, f"{suite}-{share}.txt")


def read(suite, share):
    """The failures that are expected, with their reasons."""
    found = {}
    try:
        with open(path_of(suite, share)) as file:
            for number, line in enumerate(file, 1):
                case, mark, reason = line.partition("  # ")
                if not line.strip() or line.startswith("#"):
                    continue
                if not mark or not reason.strip():
                    raise ValueError(f"{path_of(suite, share)}:{number}: a case without a reason: {line.strip()}")
                found[case.strip()] = reason.strip()
    except FileNotFoundError:
        pass
    return found


def compare(suite, share, verdicts, details, complete):
    """What differs from the list; None when nothing does. `details` is what each case said, `complete` whether every
    case of the suite was to run."""
    expected = read(suite, share)
    failed = {case for case, verdict in verdicts.items() if verdict == "FAILED"}
    problems = [
        "\n  ".join([f"{case}: failed, and no such failure is expected", *details.get(case, ())])
        for case in sorted(failed - expected.keys())
    ]
    for case in sorted(expected.keys() - failed):
        if verdicts.get(case) == "ok" and expected[case].startswith(EITHER):
            continue
        if case in verdicts:
            problems.append(f"{case}: {verdicts[case]}, though a failure is expected: {expected[case]}")
        elif complete:
            problems.append(f"{case}: did not run, though a failure is expected: {expected[case]}")
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"and {len(problems) - SHOWN} more"]
    return "\n".join(problems) or None


def write(suite, share, verdicts, details):
    """Writes the list anew from a run; what did not run stays. Returns the cases that neither a rule nor the old list
    has a reason for; they are left out."""
    with open(RULES, "rb") as file:
        rules = tomllib.load(file)["rule"]
    before = read(suite, share)
    reasons = {
        case: reason for case, reason in before.items() if case not in verdicts or reason.startswith(EITHER)
    }
    unexplained = []
    for case in sorted(case for case, verdict in verdicts.items() if verdict == "FAILED"):
        said = "\n".join(details.get(case, ()))
        reason = reasons.get(case) or reason_for(rules, suite, share, case, said) or before.get(case)
        if reason:
            reasons[case] = reason
        else:
            unexplained.append(case)
    lines = [f"{case}  # {reason}\n" for case, reason in sorted(reasons.items())]
    if lines:
        with open(path_of(suite, share), "w") as file:
            file.writelines(lines)
    elif os.path.exists(path_of(suite, share)):
        os.remove(path_of(suite, share))
    return unexplained


def reason_for(rules, suite, share, case, said):
    """The reason of the first rule that fits, if one does."""
    for rule in rules:
        if (
            fnmatch.fnmatchcase(suite, rule.get("suite", "*"))
            and any(fnmatch.fnmatchcase(share, pattern) for pattern in rule.get("shares", ["*"]))
            and any(fnmatch.fnmatchcase(case, pattern) for pattern in rule.get("cases", ["*"]))
            and re.search(rule.get("says", ""), said)
        ):
            return rule["reason"]
    return None
