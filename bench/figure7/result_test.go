package main

import (
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sample() *result {
	r := newResult([]int{5, 100, 2000})
	for i, n := range r.numbers {
		for m := range modes {
			for k := range 9 {
				r.samples[i][m] = append(r.samples[i][m], time.Duration(n*100+k*n)*time.Microsecond)
			}
		}
	}
	r.lags = []time.Duration{time.Millisecond}
	return r
}

func TestQuantile(t *testing.T) {
	v := []time.Duration{40, 10, 30, 20}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0, 10}, {0.5, 25}, {1, 40}} {
		if got := quantile(v, c.q); got != c.want {
			t.Errorf("quantile %v is %v, not %v", c.q, got, c.want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
}

func TestDifference(t *testing.T) {
	var a, same, more []time.Duration
	for i := range 50 {
		noise := time.Duration(i%7-3) * time.Millisecond
		a = append(a, 100*time.Millisecond)
		same = append(same, 100*time.Millisecond+noise)
		more = append(more, 120*time.Millisecond+noise)
	}
	if d, low, high := difference(a, same); low > 0 || high < 0 || d < low || d > high {
		t.Errorf("noise alone: %v (%v to %v)", d, low, high)
	}
	if d, low, high := difference(a, more); low <= 0 || d < low || d > high {
		t.Errorf("20 ms more: %v (%v to %v)", d, low, high)
	}
}

func TestCSV(t *testing.T) {
	r := sample()
	got, err := parseCSV(r.csv())
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"x", "5,fast,1", "5,plain,x", "x,plain,1"} {
		if _, err := parseCSV(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestDraw(t *testing.T) {
	text := draw(sample())
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"NaN", "Inf"} {
		if strings.Contains(text, bad) {
			t.Errorf("the drawing has %s", bad)
		}
	}
	if n := strings.Count(text, "<polyline"); n != int(modes) {
		t.Errorf("%d lines for %d modes", n, modes)
	}
	if draw(newResult([]int{5})) != "" {
		t.Error("a drawing of nothing")
	}
}
