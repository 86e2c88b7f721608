"""Attacks on the verdict: to be paid without being right."""

# ruff: noqa: E501 (a program a line)
from __future__ import annotations

from tests.verifiers.sandbox.attacks import LIBC, SPEAK, attack, function

EVIL_OBJECT = """
class Evil:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 1
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __iter__(self): return iter([self])
    def __int__(self): return 7
"""

FORGERY = [
    attack("calls", "sys_exit_zero", "early_exit", function("sys.exit(0)", "import sys")),
    attack("calls", "os_exit_zero", "early_exit", function("os._exit(0)", "import os")),
    attack("calls", "sys_exit_on_load", "early_exit", "import sys\nsys.exit(0)\ndef f(x): return x"),
    attack("calls", "os_exit_on_load", "early_exit", "import os\nos._exit(0)\ndef f(x): return x"),
    attack("calls", "exit_builtin", "early_exit", function("exit()")),
    attack("calls", "a_thread_exits", "early_exit", function(
        "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()\nimport time; time.sleep(60)")),
    attack("calls", "equal_to_everything", "not_plain", EVIL_OBJECT + "def f(x): return Evil()"),
    attack("calls", "equal_in_a_list", "not_plain", EVIL_OBJECT + "def f(x): return [Evil()]"),
    attack("calls", "equal_as_a_key", "not_plain", EVIL_OBJECT + "def f(x): return {Evil(): 1}"),
    attack("calls", "subclassed_int", "not_plain", "class I(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\n"
           "def f(x): return I(7)"),
    attack("calls", "subclassed_str", "not_plain", "class S(str):\n    __eq__ = lambda *a: True\n    __hash__ = str.__hash__\n"
           "def f(x): return S('7')"),
    attack("calls", "subclassed_list", "not_plain", "class L(list):\n    __eq__ = lambda *a: True\ndef f(x): return L([7])"),
    attack("calls", "class_equal_to_everything", "not_plain",
           "class M(type):\n    __eq__ = lambda *a: True\n    __hash__ = type.__hash__\nclass E(metaclass=M): pass\n"
           "def f(x): return E"),
    attack("calls", "names_itself_int", "not_plain",
           "class I:\n    __eq__ = lambda *a: True\n    @property\n    def __class__(self): return int\ndef f(x): return I()"),
    attack("calls", "type_patched", "wrong_answer not_plain early_exit exception",
           EVIL_OBJECT + "import builtins\nreal = type\nbuiltins.type = lambda *a: int if real(a[0]) is Evil else real(*a)\n"
           "def f(x): return Evil()"),
    attack("calls", "packer_patched", "wrong_answer", function(
        "import sys\nplain = sys.modules['headrace.verifiers.sandbox.plain']\nplain.pack = lambda *a: True\nreturn 1")),
    attack("calls", "json_patched", "wrong_answer", function(
        "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nreturn 1")),
    attack("calls", "json_poisoned", "wrong_answer", function(
        "import sys, types\nsys.modules['json'] = types.SimpleNamespace(dumps=lambda *a: '1')\nreturn 1")),
    attack("calls", "modules_poisoned", "wrong_answer", function(
        "import sys\nfor name in list(sys.modules):\n    if name != 'builtins': sys.modules[name] = None\nreturn x")),
    attack("calls", "import_hook", "wrong_answer", function(
        "import sys\nclass Hook:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, Hook())\nreturn x")),
    attack("calls", "trace_hook", "wrong_answer exception", function(
        "import sys\ndef t(frame, event, arg):\n    if 'value' in frame.f_locals: frame.f_locals['value'] = 1\n    return t\n"
        "sys.settrace(t); sys.setprofile(lambda *a: None)\nreturn x")),
    attack("calls", "atexit_speaks", "wrong_answer", SPEAK + "import atexit\ndef f(x):\n    atexit.register(say, passed=True)\n"
           "    return x"),
    attack("calls", "excepthook_speaks", "exception", SPEAK + "def f(x):\n    sys.excepthook = lambda *a: say(passed=True)\n"
           "    raise ValueError"),
    attack("calls", "frames_of_callers", "wrong_answer not_plain", function(
        "import sys\nframe, seen = sys._getframe(), []\nwhile frame:\n    seen.append(repr(frame.f_locals)[:5000])\n"
        "    frame = frame.f_back\nreturn seen")),
    attack("calls", "everything_the_collector_knows", "wrong_answer output_flood", function(
        "import gc\nfound = [o for o in gc.get_objects() if type(o) is dict and ('expected' in o or 'calls' in o)]\n"
        "return [repr(o)[:400] for o in found][:20]")),
    attack("calls", "bare_value_of_another_type", "wrong_answer", function("return True")),
    attack("calls", "nan", "wrong_answer", function("return float('nan')")),
    attack("calls", "endless_generator", "not_plain", function("while True: yield 7")),
    attack("calls", "endless_iterator", "not_plain", function("import itertools\nreturn itertools.count()")),
    attack("calls", "cyclic_list", "not_plain", function("a = []\na.append(a)\nreturn a")),
    attack("calls", "deep_list", "not_plain", function("a = []\nfor _ in range(500): a = [a]\nreturn a")),
    attack("calls", "text_of_its_exception_exits", "early_exit", "import os\nclass E(Exception):\n"
           "    def __str__(self): os._exit(0)\ndef f(x): raise E"),
    attack("calls", "text_of_its_exception_raises", "exception", "class E(Exception):\n"
           "    def __str__(self): raise SystemExit\ndef f(x): raise E"),
    attack("calls", "exception_without_a_name", "exception early_exit bad_answer", "class M(type):\n    __name__ = 7\n"
           "class E(Exception, metaclass=M): pass\ndef f(x): raise E"),
    attack("calls", "raises_all_there_is", "exception", function("raise BaseException('7')")),
    attack("calls", "keyboard_interrupt", "exception", function("raise KeyboardInterrupt")),
    attack("calls", "lone_surrogate", "wrong_answer", function("return '\\ud800' + chr(0xdfff)")),
    attack("calls", "exception_in_surrogates", "exception", function("raise ValueError('\\ud800')")),
    attack("calls", "huge_integer", "output_flood", function("return 1 << 4_000_000")),
    attack("calls", "large_integer", "wrong_answer", function("return 1 << 50_000")),
    attack("calls", "null_in_source", "exception syntax_error", "def f(x): return 1\0"),
    attack("calls", "source_too_deep", "syntax_error exception memory crash", "def f(x): return " + "(" * 5000 + ")" * 5000),
    attack("calls", "source_with_surrogates", "exception syntax_error", "def f(x): return '\ud800'"),
    attack("script", "prints_a_verdict", "wrong_answer", "print('{\"verdict\": \"pass\", \"reward\": 1.0}')"),
    attack("script", "prints_to_the_host", "output_flood", "import os\nfor d in range(3, 64):\n    try: os.write(d, b'x' * 64)\n"
           "    except OSError: pass"),
    attack("script", "exits_zero_in_silence", "wrong_answer", "import sys\nsys.exit(0)"),
    attack("script", "exits_with_text", "exception", "import sys\nsys.exit('7')"),
    attack("script", "exits_with_a_number_too_large", "wrong_answer exception", "import sys\nsys.exit(1 << 80)"),
    attack("script", "exits_with_true", "exception wrong_answer", "import sys\nsys.exit(True)"),
    attack("script", "stdout_replaced", "wrong_answer", "import sys, io\nsys.stdout = io.StringIO()\nprint('7')"),
    attack("script", "stdout_closed", "wrong_answer exception", "import os\nos.close(1)\nos.close(2)\nprint('7')"),
    attack("script", "reads_its_input_twice", "exception wrong_answer", "print(input())\nprint(input())"),
]  # fmt: skip

# Frames to the host, each of which it has to take for what it is. The names are `calls`; the function answers for itself.
FRAMES = {
    "answer_with_a_verdict": "say(verdict='pass', passed=True, reward=1.0, tested={'value': 1})",
    "answer_with_a_wrong_nonce": "speaker().nonce = '0' * 16; say(value=[7, [None]])",
    "answer_without_a_nonce": "send(b'{\"value\": [7, [null]]}')",
    "answer_with_the_nonce_twice": "send(b'{\"nonce\": \"%s\", \"nonce\": 1, \"value\": [7, [null]]}' % speaker().nonce.encode())",
    "answer_that_is_a_list": "send(b'[1]')",
    "answer_that_is_null": "send(b'null')",
    "answer_of_nothing": "send(b'')",
    "answer_that_is_no_text": "send(bytes(range(256)))",
    "answer_nested_deeply": "send(b'[' * 20000 + b']' * 20000)",
    "answer_with_objects_nested_deeply": "send(b'{\"value\":' * 9000 + b'1' + b'}' * 9000)",
    "answer_with_a_value_nested_deeply": "a = None\nfor _ in range(400): a = [a]\nsay(value=[a, [None]])",
    "answer_with_a_reason_nested_deeply": "a = None\nfor _ in range(900): a = [a]\nsay(raised=a, message=a)",
    "answer_with_a_number_for_a_reason": "say(raised=7, message=7)",
    "answer_with_no_reason": "say(not_plain={})",
    "answer_with_a_bare_value": "say(value=7)",
    "answer_with_half_a_value": "say(value=[7])",
    "answer_with_too_many_values": "say(value=[7, [None], 7])",
    "answer_with_arguments_that_are_none": "say(value=[7, 7])",
    "answer_with_too_many_arguments": "say(value=[7, [None, None, None]])",
    "answer_with_an_object_for_arguments": "say(value=[7, {'a': 1}])",
    "answer_with_an_unknown_tag": "say(value=[{'pickle': 'gASVAAAA'}, [None]])",
    "answer_with_two_tags": "say(value=[{'int': '0x7', 'float': '7'}, [None]])",
    "answer_with_an_integer_as_integer": "say(value=[{'int': 7}, [None]])",
    "answer_with_a_float_too_large": "say(value=[{'float': 10 ** 400}, [None]])",
    "answer_with_a_float_of_many_digits": "say(value=[{'float': '1' * 50000}, [None]])",
    "answer_with_an_integer_of_many_digits": "send(b'{\"nonce\": \"%s\", \"value\": [%s, [null]]}' % (speaker().nonce.encode(), b'1' * 60000))",
    "answer_with_nan": "send(b'{\"nonce\": \"%s\", \"value\": [NaN, [null]]}' % speaker().nonce.encode())",
    "answer_with_infinity": "send(b'{\"nonce\": \"%s\", \"value\": [-Infinity, [null]]}' % speaker().nonce.encode())",
    "answer_with_an_endless_range": "say(value=[{'range': [0, 10 ** 18, 1]}, [None]])",
    "answer_with_a_range_of_step_zero": "say(value=[{'range': [0, 1, 0]}, [None]])",
    "answer_with_an_unhashable_key": "say(value=[{'dict': [[[], 1]]}, [None]])",
    "answer_with_pairs_that_are_none": "say(value=[{'dict': [1, 2]}, [None]])",
    "answer_with_keys_of_one_hash": "say(value=[{'set': [i * (2 ** 61 - 1) for i in range(2500)]}, [None]])",
    "answer_with_bad_bytes": "say(value=[{'bytes': 'zz'}, [None]])",
    "answer_with_bad_complex": "say(value=[{'complex': ['x', []]}, [None]])",
    "answer_longer_than_it_says": "os.write(speaker()._descriptor, struct.pack('>I', 2) + b'{}' + b'{' * 100)",
    "answer_shorter_than_it_says": "os.write(speaker()._descriptor, struct.pack('>I', 1000) + b'{}')\nos._exit(0)",
    "answer_of_four_gigabytes": "os.write(speaker()._descriptor, struct.pack('>I', 0xffffffff) + b'{}')",
    "answers_without_end": "for _ in range(100000): say(value=[7, [None]])",
    "answers_before_all_questions": "for _ in range(50): say(value=[x, [None]])",
    "says_again_that_it_is_defined": "say(defined={'value': True}); say(defined=[])",
    "closes_the_way_to_the_host": "os.close(speaker()._descriptor)\nos._exit(0)",
    "shuts_the_way_to_the_host": "import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=speaker()._descriptor)"
                                 ".shutdown(socket.SHUT_RDWR)\nos._exit(0)",
}  # fmt: skip
FORGERY += [
    attack("calls", name, "bad_answer" if "nonce" in name else "bad_answer not_plain wrong_answer output_flood early_exit exception",
           function(f"{body}\nreturn x", SPEAK))
    for name, body in FRAMES.items()
]  # fmt: skip
FORGERY += [
    attack("calls", f"on_load_says_{name}", "bad_answer missing_function early_exit exception", f"{SPEAK}\nsay(defined={outcome})\nos._exit(0)")
    for name, outcome in {"defined_a_list": "[]", "defined_one": "{'value': 1}", "defined_raised": "{'raised': [[]]}",
                          "defined_none": "None", "defined_true": "True"}.items()
]  # fmt: skip
FORGERY += [
    attack(
        "calls",
        "on_load_says_it_is_defined",
        "early_exit bad_answer",
        SPEAK + "say(defined={'value': True})\nos._exit(0)",
    ),
]

# Against a test that is code: it lives in another process, and its secret with it.
TESTS = [
    attack("test", "test_sees_true", "wrong_answer", function("return True")),
    attack("test", "test_sees_an_object", "not_plain", EVIL_OBJECT + "def f(x): return Evil()"),
    attack("test", "test_code_exits", "early_exit", function("import os\nos._exit(0)")),
    attack("test", "test_code_raises_assertion", "exception", function("raise AssertionError")),
    attack("test", "test_code_raises_system_exit", "early_exit", function("raise SystemExit(0)")),
    attack("test", "test_check_redefined", "wrong_answer", "def check(candidate): return True\n" + function("return x")),
    attack("test", "test_builtins_patched", "wrong_answer", function(
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.compile = None\nreturn x")),
    attack("test", "test_unittest_patched", "wrong_answer", function(
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\nreturn x")),
    attack("test", "test_module_poisoned", "wrong_answer", function(
        "import sys, types\nsys.modules['test'] = types.ModuleType('test')\nsys.modules['__main__'] = None\nreturn x")),
    attack("test", "test_verdict_forged", "bad_answer", function("say(tested={'value': 1})\nreturn x", SPEAK)),
    attack("test", "test_answered_before_it_asked", "wrong_answer bad_answer",
           SPEAK + "say(defined={'value': True})\nfor _ in range(30): say(value=[True, [None]])\ndef f(x): return x"),
    attack("test", "test_verdict_forged_on_load", "bad_answer early_exit missing_function",
           SPEAK + "say(tested={'value': 1})\nos._exit(0)"),
    attack("test", "test_sees_a_name_error", "exception", function("say(raised='NameError', message='x')\nreturn x", SPEAK)),
    attack("test", "test_sees_an_unknown_error", "early_exit", function("say(raised='SystemExit')\nreturn x", SPEAK)),
    attack("test", "test_sees_too_many_arguments", "bad_answer", function("say(value=[7, [None] * 40])\nreturn x", SPEAK)),
    attack("test", "test_gets_a_huge_number", "wrong_answer", function("return 1 << 100_000")),
    attack("test", "test_gets_a_huge_range", "wrong_answer", function("return range(10 ** 18)")),
    attack("test", "test_memory_is_searched", "wrong_answer memory", LIBC + '''
import re
def f(x):
    """What looks like the secret, anywhere in this process's memory: pages that cannot be read are refused by `write`."""
    page, pattern, here = 4096, re.compile(("HRM" + "ARK-").encode() + b"[0-9a-f]{32}"), ctypes.create_string_buffer(8192)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    for start in sorted({id(object()) >> 24, id(f) >> 24, id(os) >> 24, ctypes.addressof(here) >> 24}):
        for address in range((start - 2) << 24, (start + 3) << 24, page):
            if libc.write(write_end, ctypes.c_void_p(address), page) == page:
                found = pattern.search(os.read(read_end, page))
                if found: return found.group().decode()
    return x
'''),
    attack("test", "test_collector_is_searched", "wrong_answer output_flood memory", function(
        "import gc, re\nfor each in gc.get_objects():\n    found = re.search('HRM' + 'ARK-[0-9a-f]{32}', repr(each)[:100000])\n"
        "    if found: return found.group()\nreturn x")),
]  # fmt: skip
