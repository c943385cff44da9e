package linux_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmscope/kernel/linux"
)

func (s *state) testLog(t *testing.T) {
	// A record of several lines, one that is no text, a large one. The last has
	// to end its line: else the guest itself waits for more and does not show it.
	_, err := s.g.Run(t.Context(), `printf 'one\ntwo\n' >/dev/kmsg; printf '<13>\001\377\\x20\tq\n' >/dev/kmsg; head -c 900 /dev/zero | tr '\0' z >/dev/kmsg; echo last >/dev/kmsg`)
	if err != nil {
		t.Fatal(err)
	}
	s.compareLog(t)

	// Without types, VMCOREINFO tells the layout.
	k, err := linux.Find(t.Context(), s.m, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	k.Types, k.TypesErr = nil, errors.ErrUnsupported
	without := &state{g: s.g, m: s.m, k: k}
	without.compareLog(t)
	without.compareLog(t)
}

func (s *state) compareLog(t *testing.T) {
	t.Helper()
	want, err := s.g.Dmesg(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.view(t, func(v *linux.View) {
		got, err := v.Log()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%d records, the guest says %d", len(got), len(want))
		}
		bad, devices := 0, 0
		for i := range min(len(got), len(want)) {
			g, w := got[i], want[i]
			gs := fmt.Sprintf("%d %d %d.%d %q %q %q", g.Seq, uint64(g.Time)/1000, g.Facility, g.Level, string(g.Text), string(g.Subsystem), string(g.Device))
			ws := fmt.Sprintf("%d %d %d.%d %q %q %q", w.Seq, w.Usec, w.Facility, w.Level, string(w.Text), w.Dict["SUBSYSTEM"], w.Dict["DEVICE"])
			if gs != ws {
				if bad++; bad < 10 {
					t.Errorf("got\n%s\nthe guest says\n%s", gs, ws)
				}
			}
			if g.Caller == "" || g.Caller[0] != 'T' && g.Caller[0] != 'C' {
				t.Errorf("caller %q", g.Caller)
			}
			if g.Device != "" {
				devices++
			}
		}
		t.Logf("%d records, %d of devices, last %q by %s", len(got), devices, got[len(got)-1].Text, got[len(got)-1].Caller)
	})
}

// testLogStorm fills the ring until it wraps, reading it all the while.
func (s *state) testLogStorm(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		// The rate at which a process may write is limited by default.
		_, err := s.g.Run(ctx, `echo on >/proc/sys/kernel/printk_devkmsg
i=0; while [ $i -lt 3000 ]; do echo "storm $i $i $i $i $i $i $i $i $i $i $i $i $i $i $i" >/dev/kmsg; i=$((i+1)); done`)
		done <- err
	}()
	logs, failed := 0, 0
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d logs read, %d failed", logs, failed)
			if failed*100 > logs {
				t.Errorf("%d of %d logs failed", failed, logs)
			}
			s.compareLog(t)
			return
		default:
		}
		s.view(t, func(v *linux.View) {
			recs, err := v.Log()
			logs++
			if err != nil {
				failed++
				t.Log(err)
				return
			}
			for i, r := range recs {
				if i > 0 && r.Seq <= recs[i-1].Seq {
					t.Fatalf("record %d follows %d", r.Seq, recs[i-1].Seq)
				}
				n, ok := strings.CutPrefix(string(r.Text), "storm ")
				if !ok {
					continue
				}
				n, _, _ = strings.Cut(n, " ")
				if want := "storm " + strings.TrimSpace(strings.Repeat(n+" ", 15)); string(r.Text) != want {
					t.Fatalf("record %d reads %q", r.Seq, r.Text)
				}
			}
		})
	}
}
