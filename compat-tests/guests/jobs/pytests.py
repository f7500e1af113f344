"""Python's own tests of files, with their working and temporary directories on the share. Which of the cases fail is
compared with a list that the host has."""

import os
import resource
import sys
import unittest

from guestlib import detail, finish, result, setting, step

SUITE = "python"
MODULES = [
    "os", "posix", "shutil", "mmap", "tempfile", "pathlib", "glob", "file", "fileio", "filecmp", "fcntl", "posixpath",
    "genericpath",
]
# These take as long as all of the others.
if setting("PYTHON_ALL"):
    MODULES += ["tarfile", "zipfile", "mailbox", "fileinput", "dbm_dumb", "shelve", "largefile"]
# Cases that say nothing about a file system and take long or depend on the machine, by the beginning of their names.
LEFT_OUT = (
    # Processes, users and the clock of the machine.
    "test.test_os.SpawnTests", "test.test_os.URandom", "test.test_os.GetRandomTests", "test.test_os.CPUCountTests",
    "test.test_os.PidTests", "test.test_os.SchedTests", "test.test_os.ForkTests", "test.test_os.ProgramPriorityTests",
    "test.test_os.TermsizeTests", "test.test_os.ProcsTests", "test.test_os.PosixUidGidTests", "test.test_os.FDInherit",
    "test.test_os.EventfdTests", "test.test_os.EnvironTests", "test.test_os.LoginTests", "test.test_os.ExecTests",
    "test.test_os.TestSendfile", "test.test_os.MemfdCreateTests", "test.test_os.DeviceEncodingTests",
    "test.test_os.Pep383Tests", "test.test_posix.PosixTester.test_getgro", "test.test_posix.PosixTester.test_initgro",
    "test.test_posix.PosixTester.test_sched", "test.test_posix.TestPosixSpawn", "test.test_posix.PosixGroupsTester",
    "test.test_posix.PosixTester.test_getcwd_long", "test.test_posix.PosixTester.test_cld",
    "test.test_posix.TestPosixSpawnP", "test.test_posix.PosixTester.test_put", "test.test_posix.PosixTester.test_getpid",
    # The guest's clock against the host's, which gives the times.
    "test.test_os.UtimeTests.test_utime_current", "test.test_genericpath.TestGenericTest.test_filetime",
    "test.test_posixpath.PosixCommonTest.test_filetime",
    # A thousand temporary files, to see that names do not repeat.
    "test.test_tempfile.TestRandomNameSequence",
    # Compression, on archives in memory.
    "test.test_tarfile.Bz2", "test.test_tarfile.Lzma", "test.test_zipfile.Bzip2", "test.test_zipfile.Lzma",
    "test.test_zipfile.Deflate", "test.test_zipfile.TestsWithRandomBinaryFiles", "test.test_zipfile.EncodedMetadata",
    "test.test_zipfile.TestPath", "test.test_zipfile.TestWithDirectory.test_bug_6050",
    # 2.5 GB of zeros, which the store would take.
    "test.test_largefile.TestCopyfile", "test.test_largefile.TestSocketSendfile", "test.test_mmap.LargeMmapTests",
)


class Result(unittest.TestResult):
    """Tells the host of every case as it ends; subtests count for their case."""

    def startTest(self, test):
        super().startTest(test)
        self.verdict = "ok"

    def stopTest(self, test):
        super().stopTest(test)
        result(SUITE, self.verdict, test.id())

    def _bad(self, test, error):
        self.verdict = "FAILED"
        # The last line names the exception, the one above it the place.
        detail(SUITE, test.id(), "\n".join(self._exc_info_to_string(error, test).splitlines()[-6:]))

    def addError(self, test, err):
        if isinstance(test, unittest.TestCase):
            self._bad(test, err)
        else:  # the set-up of a class or a module, which stands for all of its cases
            name = str(test).replace(" ", "_")
            result(SUITE, "FAILED", name)
            detail(SUITE, name, self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        self._bad(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._bad(test, err)

    def addSkip(self, test, reason):
        if self.verdict == "ok":
            self.verdict = "skipped"

    def addExpectedFailure(self, test, err):
        pass

    def addUnexpectedSuccess(self, test):
        self._bad(test, (AssertionError, AssertionError("unexpected success"), None))


def cases(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        elif not item.id().startswith(LEFT_OUT):
            yield item


def run(module):
    """One module in a directory of its own. The names of what it makes begin with the process's number."""
    loaded = unittest.defaultTestLoader.loadTestsFromName(f"test.test_{module}")
    found = list(cases(loaded))
    if not found:
        return "no cases"
    unittest.TestSuite(found).run(Result())
    return None


def main():
    share = os.path.join(os.getcwd(), "python")
    os.makedirs(os.path.join(share, "tmp"))
    os.environ["TMPDIR"] = os.environ["TEMP"] = os.path.join(share, "tmp")
    os.chdir(share)
    # Imported late: the name of the directory for test files is taken at the import.
    import test.support

    test.support.verbose = 0
    # No file of gigabytes, no network, no graphics.
    test.support.use_resources = []
    limit = os.environ["FILE_BYTES_MAX"]
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    # The modules write to the standard output, which is the host's stream.
    quiet = open(os.devnull, "w")
    stream, sys.stdout = sys.stdout, sys.stdout
    for module in MODULES:
        sys.stderr = quiet
        step(f"test_{module} came to its end", run, module)
        os.chdir(share)
    sys.stdout = stream
    sys.stderr = sys.__stderr__
    os.chdir("..")


main()
step("what it left can be removed", lambda: os.system("rm -r python") and "rm failed")
finish()
