package guestlab

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// recorder is a test that notes how it was ended.
type recorder struct {
	testing.TB
	skipped, failed bool
}

type ended struct{}

func (r *recorder) Helper()               {}
func (r *recorder) Name() string          { return "a/test" }
func (r *recorder) SkipNow()              { r.skipped = true; panic(ended{}) }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; panic(ended{}) }

func TestSkipOrFail(t *testing.T) {
	for _, require := range []string{"", "1"} {
		t.Setenv(RequireGuests, require)
		r := &recorder{TB: t}
		func() {
			defer func() {
				if v := recover(); v != (ended{}) {
					t.Errorf("went on: %v", v)
				}
			}()
			SkipOrFail(r, "because of a test")
		}()
		if r.failed != (require == "1") || r.skipped == r.failed {
			t.Errorf("%s=%q: skipped %v, failed %v", RequireGuests, require, r.skipped, r.failed)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Start(t.Context(), Config{Kernel: "bookworm"}); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v", err)
	}
	t.Setenv("VMSCOPE_LAB", t.TempDir())
	if _, err := Fetch(t.Context(), "bookworm"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v", err)
	}
}

func TestSweep(t *testing.T) {
	base := t.TempDir()
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"dead", "living", "new"} {
		d := runDir{path: filepath.Join(base, runPrefix+name)}
		if err := os.Mkdir(d.path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.lockName(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "living" {
			unlock, err := lockFile(t.Context(), d.lockName())
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
		}
		if name != "new" {
			if err := os.Chtimes(d.path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	sweep(base)
	for name, want := range map[string]bool{"dead": false, "living": true, "new": true} {
		if _, err := os.Stat(filepath.Join(base, runPrefix+name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLostRace holds which ends of a boot are the emulator's fault and which the guest's own.
func TestLostRace(t *testing.T) {
	for console, want := range map[string]bool{
		"": false,
		"[    1.28] Oops: int3: 0000 [#1] SMP NOPTI\n[    1.28] Kernel panic - not syncing: Fatal exception in interrupt": true,
		"[    1.28] int3: 0000 [#1] SMP NOPTI\n[    1.28] Kernel panic - not syncing: Fatal exception in interrupt":       true,
		"[    1.28] Oops: int3: 0000 [#1] SMP NOPTI":                                                                      false, // and lives
		"[    1.28] Kernel panic - not syncing: No working init found.":                                                   false,
		"[    1.28] Oops: 0002 [#1] SMP NOPTI\n[    1.28] Kernel panic - not syncing":                                     false,
	} {
		if got := lostRace([]byte(console)); got != want {
			t.Errorf("%q: got %t", console, got)
		}
	}
}
