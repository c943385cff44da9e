package sample

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	v := []time.Duration{40, 10, 30, 20}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0, 10}, {0.5, 25}, {1, 40}} {
		if got := Quantile(v, c.q); got != c.want {
			t.Errorf("quantile %v is %v, not %v", c.q, got, c.want)
		}
	}
	if got := Quantile([]float64(nil), 0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
}

func TestMedian(t *testing.T) {
	var a, same, more []float64
	for i := range 50 {
		noise := float64(i%7 - 3)
		a = append(a, 100)
		same = append(same, 100+noise)
		more = append(more, 120+noise)
	}
	minus := func(a, b float64) float64 { return b - a }
	if e := Median(Between(a, same, minus)); !e.Holds(0) || !e.Holds(e.Median) {
		t.Errorf("noise alone: %v", e)
	}
	if e := Median(Between(a, more, minus)); e.Low <= 0 || !e.Holds(e.Median) {
		t.Errorf("20 more: %v", e)
	}
	if e := Median[float64](nil); e != (Estimate[float64]{}) {
		t.Errorf("of nothing: %v", e)
	}
}

func TestWriteDoc(t *testing.T) {
	name := filepath.Join(t.TempDir(), "doc")
	os.WriteFile(name, []byte("a\n<!-- x -->\nold\n<!-- /x -->\nb\n"), 0o600)
	for range 2 {
		if err := WriteDoc(name, "x", "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(name); string(got) != "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n" {
		t.Errorf("%q", got)
	}
	if err := WriteDoc(name, "y", ""); err == nil {
		t.Error("a place that is not there")
	}
}

func TestFill(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	const size = 3<<20 + 512
	if err := errors.Join(os.WriteFile(name, []byte("begin"), 0o600), os.Truncate(name, size), Fill(name)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	st, serr := os.Stat(name)
	if err != nil || serr != nil || len(b) != size || string(b[:5]) != "begin" || bytes.IndexFunc(b[5:], func(r rune) bool { return r != 0 }) >= 0 {
		t.Errorf("%d bytes, %v, %v", len(b), err, serr)
	}
	if n := st.Sys().(*syscall.Stat_t).Blocks * 512; n < size {
		t.Errorf("%d bytes of %d are there", n, size)
	}
}
