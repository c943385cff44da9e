package infer

import (
	"bytes"
	"errors"
	"slices"

	"vmscope/mem"
)

// Bounds of the search for variables.
const (
	maxImage = 64 << 20 // from the text on; kernels of distributions have 20 to 50 MiB
	imageBuf = 1 << 20  // what is read at a time
	maxFound = 64       // of one kind
)

// image is what looks like variables in a kernel's image. Nothing of it is proved.
type image struct {
	idle    []mem.VA // init_task
	modules []mem.VA // modules
	clocks  []clock
}

// variable is the test whether something is at an address: where its symbol says,
// or if there is none, in the image.
func (l *look) variable(name string) func(mem.VA) bool {
	at, err := l.k.Symbol(name)
	if err == nil {
		return func(va mem.VA) bool { return va == at }
	}
	return func(va mem.VA) bool { return va-l.k.Text < maxImage }
}

// image looks through the kernel's image, once. Symbols of functions are known where
// it is asked for: the last of them may lie before its data or behind.
func (l *look) image() *image {
	if l.data != nil {
		return l.data
	}
	l.data = new(image)
	const overlap = 64 // more than what is looked for takes
	b := make([]byte, imageBuf)
	end := l.k.Text + maxImage
	for at := l.k.Text &^ (mem.PageSize - 1); at < end; {
		n, err := l.k.Mem.Read(b[:min(imageBuf, uint64(end-at))], at)
		if l.spend(n+64) != nil || errors.Is(err, mem.ErrUnreachable) {
			break
		}
		o := object{at, b[:n], l.w}
		l.texts(&o)
		for off := 0; off < n; off += l.w {
			l.list(&o, off)
			l.data.clocks = l.addClock(l.data.clocks, &o, off)
		}
		switch {
		case n == imageBuf:
			at += imageBuf - overlap
		default: // behind what is not mapped
			at = (at+mem.VA(n))&^(mem.PageSize-1) + mem.PageSize
		}
	}
	l.data.clocks = slices.CompactFunc(l.data.clocks, func(a, b clock) bool { return a.at == b.at })
	return l.data
}

// texts takes up the idle tasks whose names are in a part of the image.
func (l *look) texts(o *object) {
	for from := 0; ; {
		i := bytes.Index(o.b[from:], []byte("swapper"))
		if i < 0 {
			return
		}
		if at := from + i; len(idleNames(o.b[at:min(at+commLen, len(o.b))])) > 0 {
			l.idleTask(o.at + mem.VA(at))
		}
		from += i + 1
	}
}

// idleTask takes up the tasks that may have a name at an address: they have started
// themselves and lead themselves, which is said in three places of which the
// distances are known (family).
func (l *look) idleTask(name mem.VA) {
	first := max(l.k.Text, name-maxTask) &^ 7
	o, err := l.object(first, int(name-first)+maxTask, int(name-first)+commLen)
	if err != nil {
		return
	}
	for off := 0; off < len(o.b); off += l.w {
		v := o.ptr(off)
		if v < first || v >= o.at+mem.VA(off) || v >= name || o.ptr(off+l.w) != v || o.ptr(off+6*l.w) != v {
			continue
		}
		if len(l.data.idle) < maxFound && !slices.Contains(l.data.idle, v) {
			l.data.idle = append(l.data.idle, v)
		}
	}
}

// list takes up what is at an offset if it is a list the first node of which is in
// something that begins as a module does.
func (l *look) list(o *object, off int) {
	self, next := o.at+mem.VA(off), o.word(off)
	if !l.pointer(next) || !l.pointer(o.word(off+l.w)) || mem.VA(next) == self || len(l.data.modules) >= maxFound {
		return
	}
	if back, err := l.word(mem.VA(next) + mem.VA(l.w)); err != nil || mem.VA(back) != self {
		return
	}
	n := l.moduleNamed() + l.nameLen()
	m, err := l.object(mem.VA(next)-mem.VA(l.moduleList()), n, n)
	if err == nil && m.u32(0) <= 3 && l.moduleName(&m) != "" && !slices.Contains(l.data.modules, self) {
		l.data.modules = append(l.data.modules, self)
	}
}
