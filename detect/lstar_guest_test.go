package detect

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/dump"
)

// testLSTAR has the SYSCALL instruction lead elsewhere. QEMU's monitor does not
// tell where to; the state that QEMU saves does.
func testLSTAR(t *testing.T, l *lair) {
	path := filepath.Join(t.TempDir(), "saved")
	bundle := filepath.Join(t.TempDir(), "bundle")
	look := func(sweep func(v *vmscope.View) (Result, error)) (r Result) {
		t.Helper()
		save(t, l.lab, path)
		g, err := vmscope.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if err := g.View(t.Context(), func(v *vmscope.View) error {
			cpus, err := v.Registers(t.Context())
			if err != nil || len(cpus) != l.lab.Config().CPUs || cpus[0].LSTAR == 0 {
				return fmt.Errorf("registers: %+v, %w", cpus, err)
			}
			r, err = sweep(v)
			return errors.Join(err, r.Err())
		}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	sweep := func(v *vmscope.View) (Result, error) { return Sweep(t.Context(), v, All()), nil }
	silent(t, look(sweep))
	l.put(t, "lstar", "bad_lstar")
	l.run(t, "insmod /tmp/bad_lstar.ko")
	r := look(func(v *vmscope.View) (Result, error) {
		return WriteBundle(t.Context(), v, NewReference(), bundle, dump.About{}, nil)
	})
	same(t, bundle, r, All())
	demand(t, r, "syscalls", []string{"SYSCALL", "MSR_LSTAR of vCPU 0", "entry_SYSCALL_64", "passage [bad_lstar]", "module bad_lstar"})
	l.run(t, "rmmod bad_lstar")
	silent(t, look(sweep))
}

// save has QEMU save the state of a guest as it does to migrate it. The guest
// stands still meanwhile.
func save(t *testing.T, lab *guestlab.Guest, path string) {
	t.Helper()
	m, err := qmp.Dial(t.Context(), lab.QMPSocket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	run := func(command string, args any) json.RawMessage {
		t.Helper()
		out, err := m.Run(t.Context(), command, args)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("stop", nil)
	run("migrate", map[string]any{"uri": "exec:cat > '" + path + "'"})
	for {
		var is struct{ Status string }
		if err := json.Unmarshal(run("query-migrate", nil), &is); err != nil {
			t.Fatal(err)
		}
		if is.Status == "completed" {
			break
		}
		if is.Status == "failed" {
			t.Fatal("QEMU could not save its state")
		}
		time.Sleep(20 * time.Millisecond)
	}
	run("cont", nil)
}
