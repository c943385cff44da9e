package main

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"vmscope/internal/guestlab/wire"
)

func TestMapping(t *testing.T) {
	tests := []struct {
		line string
		want wire.Mapping
	}{
		{"00400000-00401000 r-xp 00001000 fe:01 42                                 /bin/a b",
			wire.Mapping{Start: 0x400000, End: 0x401000, Perms: "r-xp", Offset: 0x1000, Major: 0xfe, Minor: 1, Inode: 42, Path: []byte("/bin/a b")}},
		{"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ", wire.Mapping{Start: 0x7f0000000000, End: 0x7f0000001000, Perms: "rw-p"}},
		{`1000-2000 r--s 00000000 00:1f 7                          /x\012y (deleted)`,
			wire.Mapping{Start: 0x1000, End: 0x2000, Perms: "r--s", Minor: 0x1f, Inode: 7, Path: []byte("/x\ny (deleted)")}},
	}
	for _, tt := range tests {
		if got, err := mapping(tt.line); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %+v, %v", tt.line, got, err)
		}
	}
	if _, err := mapping("nonsense"); err == nil {
		t.Error("nonsense was read as a mapping")
	}
}

func TestSocketLines(t *testing.T) {
	inet, err := inetSocket("   1: 0100007F:1F90 0200000A:0050 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0 20 4 30 10 -1")
	want := wire.Socket{Local: "127.0.0.1:8080", Remote: "10.0.0.2:80", State: 1, UID: 1000, Inode: 12345}
	if err != nil || !reflect.DeepEqual(inet, want) {
		t.Errorf("got %+v, %v", inet, err)
	}
	inet, err = inetSocket("   0: B80D0120000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 9 2")
	want = wire.Socket{Local: "[2001:db8::1]:53", Remote: "[::]:0", State: 7, Inode: 9}
	if err != nil || !reflect.DeepEqual(inet, want) {
		t.Errorf("got %+v, %v", inet, err)
	}
	for line, want := range map[string]wire.Socket{
		"0000000000000000: 00000002 00000000 00010000 0001 01   123 /run/a b": {Refs: 2, Flags: 0x10000, Type: 1, State: 1, Inode: 123, Path: []byte("/run/a b")},
		"0000000000000000: 00000003 00000000 00000000 0002 01 45678":          {Refs: 3, Type: 2, State: 1, Inode: 45678},
		"0000000000000000: 00000003 00000000 00000000 0005 03     8 @x":       {Refs: 3, Type: 5, State: 3, Inode: 8, Path: []byte("@x")},
	} {
		if got, err := unixSocket(line); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v", line, got, err)
		}
	}
}

func TestLogRecord(t *testing.T) {
	got, ok := logRecord("30,12,3456,-;a\\x09b\\x5cc; d\n SUBSYSTEM=pci\n DEVICE=+pci:0\n")
	want := wire.LogRecord{Seq: 12, Usec: 3456, Level: 6, Facility: 3, Text: []byte("a\tb\\c; d"), Dict: map[string]string{"SUBSYSTEM": "pci", "DEVICE": "+pci:0"}}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, ok)
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c\n\04`); !bytes.Equal(got, []byte(`/a b\c\n\04`)) {
		t.Errorf("got %q", got)
	}
}

func TestStatCountsFromLastParenthesis(t *testing.T) {
	dir := t.TempDir() + "/"
	line := "7 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n"
	if err := os.WriteFile(dir+"stat", []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	st, err := readStat(dir)
	if err != nil || st.field(3) != "S" || st.num(4) != 1 || st.u64(22) != 19 {
		t.Errorf("got %v, %v", st, err)
	}
}

func TestTinyELF(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(tinyELF(pauseCode)))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 2 || f.Entry != f.Progs[0].Vaddr+f.Progs[0].Filesz-uint64(len(pauseCode)) {
		t.Errorf("header %+v", f.FileHeader)
	}
	name := filepath.Join(t.TempDir(), "exit")
	if err := os.WriteFile(name, tinyELF(exitCode), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(name, "-x").Run(); err != nil {
		t.Errorf("the exiting program: %v", err)
	}
}
