package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"vmscope/bench/sample"
)

// The drawing, in pixels: the plot's frame within the picture.
const (
	width, height            = 760, 480
	left, right, top, bottom = 72, width - 24, 60, height - 64
)

// Colours that people with any kind of colour blindness can tell apart, and a dash and mark of its own for each.
var looks = [modes]struct{ colour, dash, mark string }{
	plain:   {"#4d4d4d", "", "circle"},
	tapped:  {"#0072b2", "7 4", "square"},
	watched: {"#d55e00", "2 4", "diamond"},
}

// axis is a logarithmic scale from one pixel to another.
type axis struct{ low, high, from, to float64 }

func (a axis) at(v float64) float64 {
	return a.from + (math.Log(v)-math.Log(a.low))/(math.Log(a.high)-math.Log(a.low))*(a.to-a.from)
}

// ticks are 1, 2 and 5 of each power of ten.
func (a axis) ticks() []float64 {
	var out []float64
	for e := math.Floor(math.Log10(a.low)); e <= math.Ceil(math.Log10(a.high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= a.low*0.999 && v <= a.high*1.001 {
				out = append(out, v)
			}
		}
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// draw makes the picture: a line through the medians of each mode, in a band from quartile to quartile.
func draw(r *result) string {
	low, high := math.Inf(1), 0.0
	for i := range r.samples {
		for m := range modes {
			low = min(low, millis(sample.Quantile(r.samples[i][m], 0.25)))
			high = max(high, millis(sample.Quantile(r.samples[i][m], 0.75)))
		}
	}
	if high <= 0 || low <= 0 {
		return ""
	}
	x := axis{float64(slices.Min(r.numbers)) * 0.85, float64(slices.Max(r.numbers)) * 1.18, left, right}
	y := axis{low * 0.8, high * 1.25, bottom, top}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#222">
<title>Time to create N files and sync them, in a guest that is watched and in one that is not</title>
<rect width="%d" height="%d" fill="#fff"/>
`, width, height, width, height)
	grid(&b, x, y)
	for m := range modes {
		band(&b, r, m, x, y)
	}
	for m := range modes {
		line(&b, r, m, x, y)
	}
	legend(&b)
	b.WriteString("</svg>\n")
	return b.String()
}

func grid(b *strings.Builder, x, y axis) {
	for _, v := range x.ticks() {
		fmt.Fprintf(b, `<path d="M%.1f %d V%d" stroke="#e3e3e3"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x.at(v), top, bottom, x.at(v), bottom+20, v)
	}
	for _, v := range y.ticks() {
		fmt.Fprintf(b, `<path d="M%d %.1f H%d" stroke="#e3e3e3"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, y.at(v), right, left-8, y.at(v)+4.5, v)
	}
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#888"/>
<text x="%d" y="%d" text-anchor="middle">files created, then synced</text>
<text transform="translate(20 %d) rotate(-90)" text-anchor="middle">milliseconds, by the guest's clock</text>
`, left, top, right-left, bottom-top, (left+right)/2, height-18, (top+bottom)/2)
}

// band is the area between the quartiles.
func band(b *strings.Builder, r *result, m mode, x, y axis) {
	fmt.Fprintf(b, `<path fill="%s" fill-opacity="0.16" d="`, looks[m].colour)
	letter := "M"
	for i, n := range r.numbers {
		fmt.Fprintf(b, "%s%.1f %.1f", letter, x.at(float64(n)), y.at(millis(sample.Quantile(r.samples[i][m], 0.25))))
		letter = "L"
	}
	for i := len(r.numbers) - 1; i >= 0; i-- {
		fmt.Fprintf(b, "L%.1f %.1f", x.at(float64(r.numbers[i])), y.at(millis(sample.Quantile(r.samples[i][m], 0.75))))
	}
	b.WriteString("Z\"/>\n")
}

func line(b *strings.Builder, r *result, m mode, x, y axis) {
	var points, marks strings.Builder
	for i, n := range r.numbers {
		px, py := x.at(float64(n)), y.at(millis(sample.Quantile(r.samples[i][m], 0.5)))
		fmt.Fprintf(&points, "%.1f,%.1f ", px, py)
		mark(&marks, m, px, py)
	}
	fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s" points="%s"/>`+"\n%s", looks[m].colour, looks[m].dash, strings.TrimSpace(points.String()), marks.String())
}

func mark(b *strings.Builder, m mode, x, y float64) {
	shape := fmt.Sprintf(`<circle cx="%.1f" cy="%.1f" r="4"`, x, y)
	switch looks[m].mark {
	case "square":
		shape = fmt.Sprintf(`<rect x="%.1f" y="%.1f" width="8" height="8"`, x-4, y-4)
	case "diamond":
		shape = fmt.Sprintf(`<path d="M%.1f %.1fl5 5l-5 5l-5 -5z"`, x, y-5)
	}
	fmt.Fprintf(b, `%s fill="#fff" stroke="%s" stroke-width="1.8"/>`+"\n", shape, looks[m].colour)
}

func legend(b *strings.Builder) {
	x := float64(left)
	for m := range modes {
		fmt.Fprintf(b, `<path d="M%.1f 32h34" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`, x, looks[m].colour, looks[m].dash)
		mark(b, m, x+17, 32)
		fmt.Fprintf(b, `<text x="%.1f" y="36.5">%s</text>`+"\n", x+42, m)
		x += 60 + 7.2*float64(len(m.String()))
	}
	fmt.Fprintf(b, `<text x="%d" y="36.5" text-anchor="end" fill="#666">line: median, band: quartiles</text>`+"\n", right)
}
