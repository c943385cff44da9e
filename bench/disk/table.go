package main

import (
	"fmt"
	"strings"
	"time"

	"vmscope/bench/sample"
)

// A measure is one of the numbers of a cost.
type measure struct {
	name string
	of   func(cost) float64
}

var (
	hostCPU  = measure{"CPU of the host's side", func(c cost) float64 { return float64(c.host) }}
	allCPU   = measure{"CPU with the guest's", func(c cost) float64 { return float64(c.cpu) }}
	guest    = measure{"time in the guest", func(c cost) float64 { return float64(c.time) }}
	switched = measure{"waits", func(c cost) float64 { return float64(c.switches) }}
)

// net is what a pattern's load cost a way in each round, less what costs a load of nothing.
func (b *bench) net(pattern, way int, m measure) []float64 {
	var idle []float64
	for _, c := range b.idle {
		idle = append(idle, m.of(c))
	}
	less := sample.Quantile(idle, 0.5)
	v := make([]float64, len(b.costs[pattern][way]))
	for i, c := range b.costs[pattern][way] {
		v[i] = m.of(c) - less
	}
	return v
}

// ratio is what way a costs for each that b does.
func (b *bench) ratio(pattern, a, base int, m measure) string {
	e := sample.Median(sample.Between(b.net(pattern, a, m), b.net(pattern, base, m), func(x, y float64) float64 { return x / y }))
	return fmt.Sprintf("%.2f (%.2f to %.2f)", e.Median, e.Low, e.High)
}

// way finds a way by name; -1 if it was not measured.
func (b *bench) way(name string) int {
	for i, w := range b.ways {
		if w.name == name {
			return i
		}
	}
	return -1
}

// tables are Markdown.
func (b *bench) tables() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s beside the plain disk's\n\n| | plain: µs each |", hostCPU.name)
	for _, w := range b.ways[1:] {
		t.WriteString(" " + w.name + " |")
	}
	t.WriteString("\n|---|" + strings.Repeat("---|", len(b.ways)) + "\n")
	for i, p := range b.patterns {
		each := sample.Quantile(b.net(i, 0, hostCPU), 0.5) / float64(p.load.N) / float64(time.Microsecond)
		fmt.Fprintf(&t, "| %s | %.1f |", p.name, each)
		for k := 1; k < len(b.ways); k++ {
			t.WriteString(" " + b.ratio(i, k, 0, hostCPU) + " |")
		}
		t.WriteByte('\n')
	}
	b.pair(&t, "our NBD", "nbdkit file")
	b.pair(&t, "vhost-user", "plain")
	fmt.Fprintf(&t, "\nMedians of the ratios of each of %d rounds, with their bootstrap interval of 95 %%.\n", len(b.idle))
	return t.String()
}

// pair compares two ways in all that was measured.
func (b *bench) pair(t *strings.Builder, one, other string) {
	a, base := b.way(one), b.way(other)
	if a < 0 || base < 0 {
		return
	}
	measures := []measure{hostCPU, switched, allCPU, guest}
	fmt.Fprintf(t, "\n| %s / %s |", one, other)
	for _, m := range measures {
		t.WriteString(" " + m.name + " |")
	}
	t.WriteString("\n|---|" + strings.Repeat("---|", len(measures)) + "\n")
	for i, p := range b.patterns {
		fmt.Fprintf(t, "| %s |", p.name)
		for _, m := range measures {
			t.WriteString(" " + b.ratio(i, a, base, m) + " |")
		}
		t.WriteByte('\n')
	}
}
