package detect

// effort is how much of processes' code is compared: pages, by which other work
// is counted as well, and page tables that are read on the way. Tables that refer
// to each other are without end.
type effort struct{ pages, tables int }

// allText is for one look: 16 GiB of code as processes map it, of which they
// share most: 0.4 s. A process needs some hundred page tables.
var allText = effort{1 << 22, 1 << 22}

// What is counted as pages: an area, a run of up to 64 pages of a file, a page
// that is not the file's own and is read.
const (
	areaCost = 16
	runCost  = 8
	copyCost = 32
)

func (e effort) spent() bool { return e.pages < 0 || e.tables <= 0 }

// begin gives one of so many processes its share of what is left.
func (w *textWalk) begin(shares int) {
	w.now = effort{w.left.pages / shares, w.left.tables / shares}
	w.left.pages -= w.now.pages
	w.left.tables -= w.now.tables
}

// end has what a process did not need be there for others.
func (w *textWalk) end() {
	w.left.pages += max(w.now.pages, 0)
	w.left.tables += max(w.now.tables, 0)
}
