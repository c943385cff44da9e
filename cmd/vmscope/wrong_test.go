package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

// truncatedELF is the head of a core that promises more than there is.
func truncatedELF() []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 4096, Filesz: 64 << 20, Memsz: 64 << 20})
	b.Write(make([]byte, 8192-b.Len()))
	return b.Bytes()
}

// TestWrongTargets gives targets that cannot be opened: each is told from the
// others, in one line that says what to do.
func TestWrongTargets(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write([]byte("RAM"))
	z.Close()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	sock := fmt.Sprintf("%s/nobody.sock", dir)
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		target string
		words  []string
	}{
		{"", []string{"empty", "vmscope vms"}},
		{"qemu:", []string{"empty"}},
		{"no-such-vm-at-all", []string{"no such VM", "no-such-vm-at-all"}},
		{"qemu:no-such-vm-at-all", []string{"no such VM", "no-such-vm-at-all"}},
		{"qemu:" + itoa(os.Getpid()), []string{"not a QEMU"}},
		{"qemu:4194304999", []string{"no such VM"}},
		{"xen:dom0", []string{"no dom0 of a Xen host", "/dev/xen/privcmd"}},
		{"esx:web1", []string{`no driver "esx"`, "qemu:", "xen:", "file:"}},
		{"libvirt:///no-such-domain", []string{"no-such-domain", "libvirt"}},
		{"libvirt://host/web1", []string{`the host "host"`, "run vmscope there"}},
		{"libvirt:web1?port=1", []string{`parameter "port"`, "socket=PATH"}},
		{"libvirt:web1?socket=x", []string{"absolute path"}},
		{"libvirt:web1?socket=" + sock, []string{"no daemon of libvirt answers", sock}},
		{"libvirt:", []string{"names no domain", "libvirt:///NAME"}},
		{"libvirt:///", []string{"names no domain", "libvirt:///NAME"}},
		{"qemu:///system", []string{"names no domain", "libvirt:///NAME"}},
		{"qemu+ssh://host/system", []string{"names no domain", "libvirt:///NAME"}},
		{"gdb:", []string{"gdb:", "HOST:PORT"}},
		{"gdb:127.0.0.1", []string{"gdb:", "HOST:PORT"}},
		{"gdb:127.0.0.1:1", []string{"unreachable", "nobody listens", "-gdb tcp::PORT"}},
		{"evil\x1b[31m\nname", []string{"no such VM", `\x1b`}},
		{filepath.Join(dir, "missing"), []string{"no such file"}},
		{"file:" + filepath.Join(dir, "missing"), []string{"no such file"}},
		{"file:", []string{"no such file"}},
		{sock, []string{"no such file"}},
		{dir, []string{"directory"}},
		{"file:" + dir, []string{"directory"}},
		{put("empty", nil), []string{"empty"}},
		{put("text", []byte("not RAM at all\n")), []string{"not a readable dump"}},
		{put("long text", bytes.Repeat([]byte("not RAM at all\n"), 10000)), []string{"no running Linux kernel"}},
		{put("zeros", make([]byte, 1<<20)), []string{"no running Linux kernel"}},
		{put("evil\x1b[31m\nname", make([]byte, 1<<20)), []string{"no running Linux kernel"}},
		{put("program", program), []string{"no core"}},
		{put("truncated", truncatedELF()), []string{"truncated", "--truncated"}},
		{put("headless", truncatedELF()[:20]), []string{"not a readable dump"}},
		{put("kdump", append([]byte("KDUMP   "), make([]byte, 8192)...)), []string{"kdump", "header version 0"}},
		{put("lime", append([]byte("EMiL"), make([]byte, 8192)...)), []string{"LiME"}},
		{put("gz", gz.Bytes()), []string{"gzip", "gunzip"}},
		{"/dev/null", []string{"/dev/null"}},
		{"/dev/zero", []string{"not a regular file"}},
		{pipe, []string{"is a pipe", "into a file"}},
		{"file:" + pipe, []string{"is a pipe", "into a file"}},
	} {
		t.Run(c.target, func(t *testing.T) {
			failed(t, []string{"ps", c.target}, c.words...)
			failed(t, []string{"lsmod", "--json", c.target}, c.words...)
		})
	}
}

// TestWrongVMs gives names of VMs that are none to look into.
func TestWrongVMs(t *testing.T) {
	pre := fmt.Sprintf("wrong-%d-", os.Getpid())
	twin := pre + "twin"
	a, b := fakeVM(t, "-name", twin, "-m", "64"), fakeVM(t, "-name", "guest="+twin+",debug-threads=on", "-m", "64")
	failed(t, []string{"ps", twin}, "several VMs", itoa(a), itoa(b))
	failed(t, []string{"ps", "qemu:" + twin}, "several VMs", itoa(a), itoa(b))

	fakeVM(t, "-name", pre+"sev", "-m", "64", "-object", "sev-guest,id=s,cbitpos=47,reduced-phys-bits=1", "-machine", "q35,confidential-guest-support=s")
	failed(t, []string{"info", pre + "sev"}, "encrypted", "sev-guest")

	nameless := fakeVM(t, "-m", "64")
	failed(t, []string{"ps", "qemu:" + itoa(nameless)}, "without name", itoa(nameless))

	evil := pre + "\x1b[31mred\xff"
	fakeVM(t, "-name", evil, "-m", "64")
	evilAccel := fakeVM(t, "-name", pre+"accel", "-accel", "tcg\x1b[31m", "-m", "64")
	failed(t, []string{"ps", evil})
	if out, _, _ := run(t, "__complete", "ps", ""); strings.Contains(out, "\x1b") || !strings.Contains(out, pre+"accel\n") {
		t.Errorf("completion: %q", out)
	}
	failed(t, []string{"ps", "nobody"}, `\x1b[31mred\xff`)

	out, stderr, status := run(t, "vms", "--quick")
	if status != 0 || stderr != "" {
		t.Errorf("vms: status %d, %q", status, stderr)
	}
	clean(t, "vms", out)
	for _, w := range []string{twin, itoa(a), itoa(b), itoa(nameless), itoa(evilAccel), `\x1b[31mred\xff`, "64 MiB"} {
		if !strings.Contains(out, w) {
			t.Errorf("vms lacks %q: %s", w, out)
		}
	}
	out, _, status = run(t, "vms", "--quick", "--json")
	if status != 0 || !strings.Contains(out, `\u001b[31mred\udcff"`) {
		t.Errorf("vms --json: status %d: %s", status, out)
	}
	for line := range strings.Lines(out) {
		m := object(t, line)
		if m["pid"] == float64(nameless) {
			if _, ok := m["name"]; ok {
				t.Errorf("a VM without name: %s", line)
			}
		}
	}
}

// TestWrongArguments gives command lines that no target can make right.
func TestWrongArguments(t *testing.T) {
	for _, c := range []struct {
		args  string
		words []string
	}{
		{"frobnicate", []string{"unknown command", "frobnicate"}},
		{"help frobnicate", []string{"frobnicate"}},
		{"completion tcsh", []string{"tcsh"}},
		{"--frobnicate", []string{"unknown flag"}},
		{"ps", []string{"TARGET", "vmscope ps --help"}},
		{"ps a b", []string{`"b"`}},
		{"ps a --frobnicate", []string{"unknown flag", "vmscope ps --help"}},
		{"ps a --color pink", []string{"--color", "pink", "always"}},
		{"ps a --route walk", []string{"walk", "mmap"}},
		{"maps a", []string{"--pid"}},
		{"env a", []string{"--pid"}},
		{"maps a --pid x", []string{"--pid", "x"}},
		{"maps a --pid 1.5", []string{"--pid"}},
		{"maps a --pid 99999999999999999999", []string{"--pid"}},
		{"type a", []string{"NAME"}},
		{"dump a", []string{"FILE"}},
		{"read a", []string{"--pa", "--va", "--sym"}},
		{"read a --pa 1 --va 1", []string{"pa", "va"}},
		{"read a --pa 1 --pid 1", []string{"pa", "pid"}},
		{"read a --pa 1 --len x", []string{`"x"`, "4096"}},
		{"read a --pa 1 --len -1", []string{`"-1"`}},
		{"read a --pa 1 --len 99999999999999999G", []string{"99999999999999999G"}},
		{"read a --pa 1 --raw --string", []string{"raw", "string"}},
		{"write a --pa 1", []string{"hex"}},
		{"write a --u32 1", []string{"--pa"}},
		{"write a --pa 1 --u8 256", []string{"256"}},
		{"write a --pa 1 --hex 1", []string{"hexadecimal"}},
		{"write a --pa 1 --hex zz", []string{"hexadecimal"}},
		{"write a --pa 1 --u8 1 --u16 1", []string{"u8", "u16"}},
		{"man", []string{"DIRECTORY"}},
		{"man a b", []string{"DIRECTORY"}},
		{"vms x", []string{"x"}},
		{"version x", []string{"x"}},
	} {
		t.Run(c.args, func(t *testing.T) { failed(t, strings.Fields(c.args), c.words...) })
	}
}

// TestWrongPlaces names a thing that is not there, or that is something else, where one of the disk commands wants it.
func TestWrongPlaces(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	failed(t, []string{"ls", "no-such.img"}, "no file", "no such VM", "no-such.img")
	failed(t, []string{"nbd", "--image", image, "--socket", image}, "--socket", "something else")
	if data, err := os.ReadFile(image); err != nil || len(data) != 1<<20 {
		t.Errorf("the image that stood in for the socket: %d bytes, %v", len(data), err)
	}
	failed(t, []string{"find", image, "-name", "x"}, "--name")
}

func TestNumber(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "4096": 4096, "0x10": 16, "0xffffffff81000000": 0xffffffff81000000, "64K": 64 << 10, "64k": 64 << 10, "1M": 1 << 20,
		"2G": 2 << 30, "2GiB": 2 << 30, "0xB": 11, "0x1B": 27, "0xcafeB": 0xcafeb, "18446744073709551615": ^uint64(0),
	} {
		if got, err := number(s); err != nil || got != want {
			t.Errorf("%s: %#x, %v, want %#x", s, got, err, want)
		}
	}
	for _, s := range []string{"", "x", "-1", "1.5", "0x", "0xg", "18446744073709551616", "17179869184G", "K", "1T", " 1", "1_000"} {
		if n, err := number(s); err == nil {
			t.Errorf("%q is %#x", s, n)
		}
	}
}
