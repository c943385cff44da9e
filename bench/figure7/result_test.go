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

func samples() *result {
	r := newResult([]int{5, 100, 2000})
	for i, n := range r.numbers {
		for m := range modes {
			for k := range 9 {
				r.samples[i][m] = append(r.samples[i][m], time.Duration(n*100+k*n)*time.Microsecond)
			}
		}
	}
	r.lags, r.lates = []time.Duration{time.Millisecond}, []time.Duration{0, time.Millisecond}
	return r
}

func TestCSV(t *testing.T) {
	r := samples()
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

func TestNoise(t *testing.T) {
	if got := noise([]time.Duration{1, 2, 4, 8}); got != 3 && got != 4 { // 1 3 7 2 6 4
		t.Errorf("got %d", got)
	}
	if got := noise([]time.Duration{5, 5, 5}); got != 0 {
		t.Errorf("got %d", got)
	}
}

func TestDraw(t *testing.T) {
	text := draw(samples())
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
