package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode"

	"vmscope/kernel"
	"vmscope/kernel/linux"
)

// TestObject prints names that would move the cursor, hide themselves or turn
// the text around: a line of JSON may stand on a terminal, too.
func TestObject(t *testing.T) {
	type row struct {
		Text  kernel.Text `json:"text"`
		Plain string      `json:"plain"`
	}
	for _, s := range []string{"", "name", "\x1b[31m", "\u009b31m", "\x7f", "\u202ered\u200b", "\U000e0041", "ä \"\\ 日本 <&>", "\u2028", "\ufffd", "\\u0041"} {
		var b bytes.Buffer
		if err := (&app{out: &b}).object(row{kernel.Text(s), s}); err != nil {
			t.Fatal(err)
		}
		for _, r := range strings.TrimSuffix(b.String(), "\n") {
			if !unicode.IsPrint(r) {
				t.Errorf("%q comes out as %q", s, b.String())
			}
		}
		var got struct{ Text, Plain string }
		if err := json.Unmarshal(b.Bytes(), &got); err != nil || got.Text != s || got.Plain != s {
			t.Errorf("%q: %s gives %q, %v", s, b.String(), got, err)
		}
	}
	var b bytes.Buffer
	if err := (&app{out: &b}).object(row{"\xff\xc2", ""}); err != nil || b.String() != `{"text":"\udcff\udcc2","plain":""}`+"\n" {
		t.Errorf("%s, %v", b.String(), err)
	}
}

// TestFull has what is printed go where nothing can be written, or nobody reads.
func TestFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err) // a sandbox without it
	}
	defer full.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	for _, c := range []struct {
		to   *os.File
		says string
	}{{full, "vmscope: write /dev/full: no space left on device\n"}, {w, ""}} {
		var stderr bytes.Buffer
		if status := (&app{out: c.to, err: &stderr}).run(t.Context(), []string{"version"}); status != statusFailed || stderr.String() != c.says {
			t.Errorf("to %s: status %d, %q", c.to.Name(), status, stderr.String())
		}
	}
}

// TestMissing checks that a table says that it does not show all.
func TestMissing(t *testing.T) {
	if s := missing([]kernel.Process{{PID: 1}, {PID: 2}}); s != "" {
		t.Error(s)
	}
	s := missing([]kernel.Process{{PID: 1}, {PID: 2, Missing: []string{"cmdline: a\x1b", "exe: b"}}, {PID: 3, Missing: []string{"state: c"}}})
	for _, w := range []string{"2 processes", "pid 2, cmdline: a", `\x1b`} {
		if !strings.Contains(s, w) {
			t.Errorf("%q lacks %q", s, w)
		}
	}
}

// TestInterrupted runs a command whose context has ended.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	name := "interrupted-" + itoa(fakeVM(t, "-name", "interrupted", "-m", "64"))
	for _, args := range [][]string{{"ps", "interrupted"}, {"vms"}, {"ps", name}} {
		var out, stderr bytes.Buffer
		status := (&app{out: &out, err: &stderr}).run(ctx, args)
		if status != statusFailed || !strings.HasPrefix(stderr.String(), "vmscope: interrupted") || strings.Count(stderr.String(), "\n") != 1 || strings.Contains(stderr.String(), "context canceled") {
			t.Errorf("%q: %d, %q", args, status, stderr.String())
		}
	}
}

// TestInfoClean prints what each word of info may come out as: names, paths and
// options of the host's processes, and what the guest says.
func TestInfoClean(t *testing.T) {
	const evil = "x\x1b[31m\u009b\n"
	var b bytes.Buffer
	a := &app{out: &b}
	a.printInfo(infoRow{Name: evil, PID: 1, VMM: evil, Route: evil, Layout: evil, Version: evil, Hostname: evil, KASLR: "0x0",
		Findings: []linux.Finding{{What: "kernel", Value: evil, Source: "banner", Confidence: "proved"}},
		Doubts:   []string{evil}, Rejected: []string{evil}, Steps: []linux.Step{{Name: "search", Note: evil}}})
	clean(t, "info", b.String())
	if n := strings.Count(b.String(), `\x1b[31m\u009b\n`); n != 10 {
		t.Errorf("%d of 10: %s", n, b.String())
	}
}
