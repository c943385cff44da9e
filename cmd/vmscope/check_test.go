package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmscope/detect"
)

// TestTold ends sweeps in all ways: a guest that keeps a check from telling must
// not turn findings into a failure, nor a failure into nothing.
func TestTold(t *testing.T) {
	high, info := detect.Finding{ID: "a-1", Check: "a", Severity: detect.High}, detect.Finding{ID: "b-1", Check: "b", Severity: detect.Info}
	cannot := errors.New("cannot tell")
	for _, c := range []struct {
		name     string
		findings []detect.Finding
		check    error
		more     error
		want     error
		stderr   bool
	}{
		{name: "nothing"},
		{name: "inventory", findings: []detect.Finding{info}},
		{name: "findings", findings: []detect.Finding{info, high}, want: errFindings},
		{name: "findings, and a check that cannot tell", findings: []detect.Finding{high}, check: cannot, want: errFindings, stderr: true},
		{name: "findings that cannot be kept", findings: []detect.Finding{high}, more: cannot, want: errFindings, stderr: true},
		{name: "a check that cannot tell", check: cannot, want: cannot},
		{name: "inventory, and a check that cannot tell", findings: []detect.Finding{info}, check: cannot, want: cannot},
	} {
		var out, stderr bytes.Buffer
		r := detect.Result{Findings: c.findings, Checks: []detect.Check{{Name: "a", Err: c.check}}}
		err := (&app{out: &out, err: &stderr}).told(t.Context(), r, c.more)
		if !errors.Is(err, c.want) || (stderr.Len() > 0) != c.stderr || bytes.Count(out.Bytes(), []byte("\n")) != len(c.findings) {
			t.Errorf("%s: %v, %q, %q", c.name, err, out.String(), stderr.String())
		}
	}
}

// TestFindingOutput prints a finding whose words a guest chose.
func TestFindingOutput(t *testing.T) {
	const nasty = "\x1b]0;owned\a\x1b[2J\r\n\u202e\u009b31m\xff\\"
	f := detect.Finding{ID: "a-1", Check: "a", Severity: detect.High, Confidence: detect.Proved, Summary: nasty,
		Evidence: []detect.Evidence{{What: nasty, Addr: 1, Symbol: nasty, Owner: nasty, Expected: nasty, Found: nasty}}}
	for _, signs := range []bool{false, true} {
		var out bytes.Buffer
		if err := (&app{out: &out}).finding(detect.Change{Finding: f}, signs); err != nil {
			t.Fatal(err)
		}
		clean(t, "finding", out.String())
		if n := bytes.Count(out.Bytes(), []byte("\n")); n != 2 {
			t.Errorf("%d lines: %q", n, out.String())
		}
	}
	var out bytes.Buffer
	if err := (&app{out: &out, json: true}).finding(detect.Change{Finding: f}, true); err != nil {
		t.Fatal(err)
	}
	clean(t, "finding --json", out.String())
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 1 || !json.Valid(out.Bytes()) {
		t.Errorf("%d lines: %q", n, out.String())
	}
}

// TestPrune keeps the newest references of a guest that boots for ever.
func TestPrune(t *testing.T) {
	k := keeper{dir: t.TempDir()}
	begin := time.Unix(1e9, 0)
	for i := range maxKept + 3 {
		path := k.path(fmt.Sprintf("%016x", i*7919%100))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, begin, begin.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(k.dir, "notes")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.prune(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(k.path("*"))
	if err != nil || len(files) != maxKept {
		t.Errorf("%d are left, %v", len(files), err)
	}
	for i := range maxKept + 3 {
		_, err := os.Stat(k.path(fmt.Sprintf("%016x", i*7919%100)))
		if (i < 3) != errors.Is(err, os.ErrNotExist) {
			t.Errorf("number %d: %v", i, err)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestCheckWrong(t *testing.T) {
	for _, c := range [][]string{{"--watch", "-5s"}, {"--watch", "0s"}, {"--watch", "soon"}, {"--only", "nonsense"}} {
		failed(t, append([]string{"check", "web1"}, c...), c...)
	}
}
