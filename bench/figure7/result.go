package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmscope/bench/sample"
)

type mode int

const (
	plain mode = iota
	tapped
	watched
	modes
)

func (m mode) String() string {
	return [...]string{"plain", "tapped", "tapped with watchpoint"}[m]
}

// result holds the samples. Those of one index in one number's modes are of one round.
type result struct {
	numbers []int
	samples [][modes][]time.Duration
	failed  []error         // samples that do not count; not kept in CSV
	lags    []time.Duration // from the commit's arrival at the disk to the last event of it
	lates   []time.Duration // from when the guest said that its sync was done to the same; 0 if the event was there already
}

func newResult(numbers []int) *result {
	return &result{numbers: numbers, samples: make([][modes][]time.Duration, len(numbers))}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Nanoseconds())/1e6) }

// noise is what two samples of the very same thing differ by: the median over all pairs.
func noise(v []time.Duration) time.Duration {
	var d []time.Duration
	for i, a := range v {
		for _, b := range v[:i] {
			d = append(d, (a - b).Abs())
		}
	}
	return sample.Quantile(d, 0.5)
}

// table is Markdown: median and quartiles, what a tap adds, and which of that noise covers.
func (r *result) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| files | samples | plain, ms | two of plain differ by, ms | tapped, ms | with watchpoint, ms | tapped - plain, ms | with watchpoint - plain, ms | within a sample's noise | within the medians' |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i, n := range r.numbers {
		s := &r.samples[i]
		fmt.Fprintf(&b, "| %d | %d", n, len(s[plain]))
		for m := range modes {
			fmt.Fprintf(&b, " | %s (%s to %s)", ms(sample.Quantile(s[m], 0.5)), ms(sample.Quantile(s[m], 0.25)), ms(sample.Quantile(s[m], 0.75)))
			if m == plain {
				fmt.Fprintf(&b, " | %s", ms(noise(s[plain])))
			}
		}
		var single, covered [modes]bool
		for m := tapped; m < modes; m++ {
			d := sample.Median(sample.Between(s[plain], s[m], func(a, b time.Duration) time.Duration { return b - a }))
			fmt.Fprintf(&b, " | %s (%s to %s)", ms(d.Median), ms(d.Low), ms(d.High))
			covered[m] = d.Holds(0)
			single[m] = d.Median <= noise(s[plain])
		}
		fmt.Fprintf(&b, " | %s | %s |\n", verdict(single[tapped], single[watched]), verdict(covered[tapped], covered[watched]))
	}
	if len(r.lags) > 0 {
		fmt.Fprintf(&b, "\nThe last event of a sample was told %s ms (median; 9 of 10 within %s ms) behind the commit's arrival at the disk.", ms(sample.Quantile(r.lags, 0.5)), ms(sample.Quantile(r.lags, 0.9)))
	}
	if len(r.lates) > 0 {
		there := 0
		for _, d := range r.lates {
			if d == 0 {
				there++
			}
		}
		fmt.Fprintf(&b, " When the guest's word came that its sync had returned, it was there already in %d of %d samples, and %s ms later in the median (9 of 10 within %s ms).",
			there, len(r.lates), ms(sample.Quantile(r.lates, 0.5)), ms(sample.Quantile(r.lates, 0.9)))
	}
	b.WriteByte('\n')
	return b.String()
}

func verdict(tap, watchpoint bool) string {
	switch {
	case tap && watchpoint:
		return "both"
	case tap:
		return "tapped only"
	case watchpoint:
		return "watchpoint only"
	}
	return "neither"
}

// csv is one line a number and mode: both, and the samples in microseconds.
func (r *result) csv() string {
	var b strings.Builder
	line := func(first, second string, v []time.Duration) {
		b.WriteString(first + "," + second)
		for _, d := range v {
			fmt.Fprintf(&b, ",%d", d.Microseconds())
		}
		b.WriteByte('\n')
	}
	for i, n := range r.numbers {
		for m := range modes {
			line(strconv.Itoa(n), m.String(), r.samples[i][m])
		}
	}
	line("0", "lag", r.lags)
	line("0", "late", r.lates)
	return b.String()
}

func parseCSV(text string) (*result, error) {
	r := &result{}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) < 2 {
			return nil, fmt.Errorf("line %q is none of samples", line)
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, err
		}
		var v []time.Duration
		for _, x := range f[2:] {
			us, err := strconv.ParseInt(x, 10, 64)
			if err != nil {
				return nil, err
			}
			v = append(v, time.Duration(us)*time.Microsecond)
		}
		switch f[1] {
		case "lag":
			r.lags = append(r.lags, v...)
			continue
		case "late":
			r.lates = append(r.lates, v...)
			continue
		}
		i := slices.Index(r.numbers, n)
		if i < 0 {
			i = len(r.numbers)
			r.numbers = append(r.numbers, n)
			r.samples = append(r.samples, [modes][]time.Duration{})
		}
		m := plain
		for m < modes && m.String() != f[1] {
			m++
		}
		if m == modes {
			return nil, fmt.Errorf("no such mode: %q", f[1])
		}
		r.samples[i][m] = v
	}
	return r, nil
}
