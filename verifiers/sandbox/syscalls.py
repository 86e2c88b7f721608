"""System calls by name: their numbers on x86_64 and aarch64, and the few that are made here, through libc.

Standard library only: the sandbox's server starts without any other.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from functools import cache, partial

_TABLE = """
accept4:288:242 accept:43:202 access:21:- acct:163:89 add_key:248:217 alarm:37:- arch_prctl:158:- bind:49:200
bpf:321:280 brk:12:214 capget:125:90 capset:126:91 chdir:80:49 chmod:90:- chroot:161:51 clock_getres:229:114
clock_gettime:228:113 clock_nanosleep:230:115 clone3:435:435 clone:56:220 close:3:57 close_range:436:436
connect:42:203 copy_file_range:326:285 delete_module:176:106 dup2:33:- dup3:292:24 dup:32:23 epoll_create1:291:20
epoll_create:213:- epoll_ctl:233:21 epoll_pwait:281:22 epoll_wait:232:- eventfd2:290:19 execve:59:221 execveat:322:281
exit:60:93 exit_group:231:94 faccessat2:439:439 faccessat:269:48 fadvise64:221:223 fallocate:285:47
fanotify_init:300:262 fchdir:81:50 fchmod:91:52 fchmodat:268:53 fcntl:72:25 fdatasync:75:83 finit_module:313:273
flock:73:32 fork:57:- fsconfig:431:431 fsmount:432:432 fsopen:430:430 fspick:433:433 fstat:5:80 fstatfs:138:44
fsync:74:82 ftruncate:77:46 futex:202:98 futex_waitv:449:449 get_robust_list:274:100 getcpu:309:168 getcwd:79:17
getdents64:217:61 getdents:78:- getegid:108:177 geteuid:107:175 getgid:104:176 getgroups:115:158 getitimer:36:102
getpgid:121:155 getpgrp:111:- getpid:39:172 getppid:110:173 getpriority:140:141 getrandom:318:278 getresgid:120:150
getresuid:118:148 getrlimit:97:163 getrusage:98:165 getsid:124:156 getsockopt:55:209 gettid:186:178
gettimeofday:96:169 getuid:102:174 init_module:175:105 io_uring_enter:426:426 io_uring_register:427:427
io_uring_setup:425:425 ioctl:16:29 ioperm:173:- iopl:172:- kcmp:312:272 kexec_file_load:320:294 kexec_load:246:104
keyctl:250:219 kill:62:129 landlock_add_rule:445:445 landlock_create_ruleset:444:444 landlock_restrict_self:446:446
link:86:- linkat:265:37 listen:50:201 lookup_dcookie:212:18 lseek:8:62 lstat:6:- madvise:28:233 membarrier:324:283
mincore:27:232 mkdir:83:- mkdirat:258:34 mmap:9:222 mount:165:40 mount_setattr:442:442 move_mount:429:429
mprotect:10:226 mremap:25:216 msync:26:227 munmap:11:215 name_to_handle_at:303:264 nanosleep:35:101 newfstatat:262:79
open:2:- open_by_handle_at:304:265 open_tree:428:428 openat:257:56 pause:34:- perf_event_open:298:241
pidfd_getfd:438:438 pidfd_open:434:434 pidfd_send_signal:424:424 pipe2:293:59 pipe:22:- pivot_root:155:41 poll:7:-
ppoll:271:73 prctl:157:167 pread64:17:67 prlimit64:302:261 process_madvise:440:440 process_vm_readv:310:270
process_vm_writev:311:271 pselect6:270:72 ptrace:101:117 pwrite64:18:68 quotactl:179:60 read:0:63 readlink:89:-
readlinkat:267:78 readv:19:65 reboot:169:142 recvfrom:45:207 recvmsg:47:212 rename:82:- renameat2:316:276
renameat:264:38 request_key:249:218 restart_syscall:219:128 rmdir:84:- rseq:334:293 rt_sigaction:13:134
rt_sigpending:127:136 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigsuspend:130:133 rt_sigtimedwait:128:137
sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_setaffinity:203:122 sched_yield:24:124 seccomp:317:277 select:23:- sendfile:40:71
sendmsg:46:211 sendto:44:206 set_robust_list:273:99 set_tid_address:218:96 setgid:106:144 setgroups:116:159
setitimer:38:103 setns:308:268 setpgid:109:154 setresgid:119:149 setresuid:117:147 setrlimit:160:164 setsid:112:157
setuid:105:146 shutdown:48:210 sigaltstack:131:132 socket:41:198 socketpair:53:199 stat:4:- statfs:137:43
statx:332:291 swapoff:168:225 swapon:167:224 symlink:88:- symlinkat:266:36 sysinfo:99:179 syslog:103:116
tgkill:234:131 time:201:- times:100:153 tkill:200:130 truncate:76:45 umask:95:166 umount2:166:39 uname:63:160
unlink:87:- unlinkat:263:35 unshare:272:97 userfaultfd:323:282 utime:132:- utimensat:280:88 utimes:235:- vfork:58:-
wait4:61:260 waitid:247:95 write:1:64 writev:20:66
"""  # name:x86_64:aarch64, from the kernel's tables; a dash where the architecture does not have it

_COLUMN = {"x86_64": 1, "aarch64": 2}
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def supported() -> bool:
    """Whether this is Linux on an architecture whose numbers are known."""
    return sys.platform == "linux" and platform.machine() in _COLUMN


def machine() -> str:
    """What this is, for a message."""
    return f"{sys.platform} on {platform.machine()}"


@cache
def numbers() -> dict[str, int]:
    """This machine's system calls of the table, by name. Raises KeyError on an architecture that it does not have."""
    column = _COLUMN[platform.machine()]
    rows = [entry.split(":") for entry in _TABLE.split()]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The system call `name`; integers travel as C longs. Raises OSError with the kernel's reason."""
    return _checked(name, _LIBC.syscall(ctypes.c_long(numbers()[name]), *map(_argument, arguments)))


def prepare(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> Callable[[], None]:
    """The same call for later, and for many times: what can be made ready for it is."""
    function = partial(_LIBC.syscall, ctypes.c_long(numbers()[name]), *map(_argument, arguments))

    def make() -> None:
        if function() < 0:
            _checked(name, -1)

    return make


def libc(name: str, *arguments: int | bytes | None) -> int:
    """The C library's function `name`, for what it wraps. Raises OSError with the kernel's reason."""
    return _checked(name, getattr(_LIBC, name)(*map(_argument, arguments)))


def _argument(value: int | bytes | ctypes.Array[ctypes.c_char] | None) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
