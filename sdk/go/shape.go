package antiphon

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A shape is how one Go type travels as JSON: its JSON Schema (2020-12), and both directions. It is built once for a type, so
// that everything that cannot travel is found when a handler is declared. A struct's fields are spelled as encoding/json spells
// them; fields without omitempty are required, pointers may be null, unknown fields are tolerated. encoding/json itself would
// take null for anything, absent fields for zero and other spellings for names, and writes null for an empty slice: none of
// that fits the schema. A mismatch never holds a value: values may be confidential.
type shape struct {
	schema schema
	// decode puts what a JSON decoder (with UseNumber) gave into a Go value that can be set.
	decode func(value any, into reflect.Value) *mismatch
	// encode appends a Go value.
	encode func(text []byte, value reflect.Value) ([]byte, *mismatch)
}

type schema = map[string]any

// mismatch says that a value does not fit, and which part of it.
type mismatch struct {
	message string
	path    []string // from the inside
}

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

func (m *mismatch) within(part string) *mismatch {
	m.path = append(m.path, pointerEscapes.Replace(part))
	return m
}

// pointer is the JSON pointer (RFC 6901) of the part at fault.
func (m *mismatch) pointer() string {
	var text strings.Builder
	for _, part := range slices.Backward(m.path) {
		text.WriteString("/" + part)
	}
	return text.String()
}

func expected(what string, got any) *mismatch {
	return &mismatch{message: "expected " + what + ", got " + kindOf(got)}
}

// kindOf is what JSON calls the kind of a value; never the value.
func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "an array"
	}
	return "an object"
}

var (
	anyType       = reflect.TypeFor[any]()
	rawType       = reflect.TypeFor[json.RawMessage]()
	timeType      = reflect.TypeFor[time.Time]()
	nothingType   = reflect.TypeFor[struct{}]()
	marshalerType = reflect.TypeFor[json.Marshaler]()
	readerType    = reflect.TypeFor[json.Unmarshaler]()
	textType      = reflect.TypeFor[encoding.TextMarshaler]()
	textReadType  = reflect.TypeFor[encoding.TextUnmarshaler]()
	labelPattern  = regexp.MustCompile(`^[a-z][a-z0-9.-]{0,62}$`)
	nonWord       = regexp.MustCompile(`[^A-Za-z0-9_]+`)
)

// shapes builds one document: named structs become $defs, which is what lets them be recursive.
type shapes struct {
	made        map[reflect.Type]*shape
	definitions map[string]schema
	used        map[string]bool
}

// shapeOf is the shape of a type, and its schema as text: empty accepts anything.
func shapeOf(kind reflect.Type) (*shape, string, error) {
	all := shapes{map[reflect.Type]*shape{}, map[string]schema{}, map[string]bool{}}
	root, err := all.of(kind)
	if err != nil {
		return nil, "", err
	}
	document := schema{}
	for key, value := range root.schema {
		document[key] = value
	}
	// A root that nothing refers back to is written out in place.
	if name, ok := strings.CutPrefix(fmt.Sprint(root.schema["$ref"]), "#/$defs/"); ok && !all.used[name] {
		document = all.definitions[name]
		delete(all.definitions, name)
	}
	if len(all.definitions) > 0 {
		document["$defs"] = all.definitions
	}
	if len(document) == 0 {
		return root, "", nil
	}
	text, err := marshal(document)
	return root, string(text), err
}

func (s *shapes) of(kind reflect.Type) (*shape, error) {
	switch {
	case kind == anyType:
		return anyShape, nil
	case kind == rawType:
		return customShape(schema{}), nil
	case kind == timeType:
		return customShape(schema{"type": "string", "format": "date-time"}), nil
	}
	// Types may say by methods how they travel, of their pointers too.
	pointer := reflect.PointerTo(kind)
	switch {
	case pointer.Implements(marshalerType) && pointer.Implements(readerType):
		return customShape(schema{}), nil
	case pointer.Implements(textType) && pointer.Implements(textReadType):
		return customShape(schema{"type": "string"}), nil
	case pointer.Implements(marshalerType):
		return nil, fmt.Errorf("%s writes its own JSON (MarshalJSON) but cannot read it; give it UnmarshalJSON", kind)
	case pointer.Implements(textType):
		return nil, fmt.Errorf("%s writes its own text (MarshalText) but cannot read it; give it UnmarshalText", kind)
	}
	switch kind.Kind() {
	case reflect.Bool:
		return boolShape, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return integerShape(kind), nil
	case reflect.Float32, reflect.Float64:
		return floatShape, nil
	case reflect.String:
		return stringShape(nil), nil
	case reflect.Pointer:
		inner, err := s.part(kind.Elem())
		if err != nil {
			return nil, err
		}
		return pointerShape(kind, inner), nil
	case reflect.Slice:
		if kind.Elem().Kind() == reflect.Uint8 {
			return bytesShape, nil
		}
		return s.array(kind)
	case reflect.Array:
		return s.array(kind)
	case reflect.Map:
		if kind.Key().Kind() != reflect.String {
			return nil, fmt.Errorf("%s cannot travel as JSON: keys must be strings", kind)
		}
		inner, err := s.part(kind.Elem())
		if err != nil {
			return nil, err
		}
		return mapShape(kind, inner), nil
	case reflect.Struct:
		return s.named(kind)
	}
	return nil, fmt.Errorf("%s cannot travel as JSON; use structs, slices, maps with string keys, plain types, or any", kind)
}

// part is the shape of something inside: from here on its definition is referred to.
func (s *shapes) part(kind reflect.Type) (*shape, error) {
	inner, err := s.of(kind)
	if err == nil {
		if name, ok := strings.CutPrefix(fmt.Sprint(inner.schema["$ref"]), "#/$defs/"); ok {
			s.used[name] = true
		}
	}
	return inner, err
}

func (s *shapes) named(kind reflect.Type) (*shape, error) {
	if known, ok := s.made[kind]; ok {
		return known, nil
	}
	base := strings.Trim(nonWord.ReplaceAllString(kind.Name(), "_"), "_")
	if base == "" {
		base = "Object"
	}
	name := base
	for number := 2; s.definitions[name] != nil; number++ {
		name = base + strconv.Itoa(number)
	}
	s.definitions[name] = schema{}
	// A struct that contains itself needs its converters before they exist, so it gets a way to them.
	made := &shape{}
	result := &shape{
		schema: schema{"$ref": "#/$defs/" + name},
		decode: func(value any, into reflect.Value) *mismatch { return made.decode(value, into) },
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) { return made.encode(text, value) },
	}
	s.made[kind] = result
	fields, err := s.fields(kind, nil)
	if err != nil {
		return nil, err
	}
	*made = *structShape(fields)
	s.definitions[name] = made.schema
	return result, nil
}

// field is one member of an object.
type field struct {
	name     string
	index    []int
	shape    *shape
	required bool
	omit     func(reflect.Value) bool
}

func (s *shapes) fields(kind reflect.Type, index []int) ([]field, error) {
	var found []field
	for number := range kind.NumField() {
		one := kind.Field(number)
		name, options, _ := strings.Cut(one.Tag.Get("json"), ",")
		at := append(slices.Clone(index), number)
		if name == "-" && options == "" {
			continue
		}
		if one.Anonymous && name == "" && one.Type.Kind() == reflect.Struct && one.Type != timeType {
			inner, err := s.fields(one.Type, at)
			if err != nil {
				return nil, err
			}
			found = append(found, inner...)
			continue
		}
		if !one.IsExported() {
			continue
		}
		if name == "" {
			name = one.Name
		}
		member := field{name: name, index: at, required: true}
		for option := range strings.SplitSeq(options, ",") {
			switch option {
			case "omitempty":
				member.required, member.omit = false, isEmpty
			case "omitzero":
				member.required, member.omit = false, reflect.Value.IsZero
			case "":
			default:
				return nil, fmt.Errorf("%s.%s: the option %q of its json tag is not supported", kind, one.Name, option)
			}
		}
		if slices.ContainsFunc(found, func(other field) bool { return other.name == name }) {
			return nil, fmt.Errorf("%s has two fields that travel as %q", kind, name)
		}
		inner, err := s.part(one.Type)
		if err == nil {
			member.shape, err = described(inner, one)
		}
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", kind, one.Name, err)
		}
		found = append(found, member)
	}
	return found, nil
}

// described adds what a field's tags say: enum, description, labels.
func described(inner *shape, from reflect.StructField) (*shape, error) {
	said := schema{}
	result := *inner
	if text := from.Tag.Get("enum"); text != "" {
		if from.Type.Kind() != reflect.String {
			return nil, fmt.Errorf("an enum tag needs a string, not %s", from.Type)
		}
		result = *stringShape(strings.Split(text, ","))
	}
	if text := from.Tag.Get("description"); text != "" {
		said["description"] = text
	}
	if text := from.Tag.Get("labels"); text != "" {
		labels := strings.Split(text, ",")
		for _, label := range labels {
			if !labelPattern.MatchString(label) {
				return nil, fmt.Errorf("%q is not a label; write a lower case word, such as pii", label)
			}
		}
		said["x-antiphon-labels"] = labels
	}
	for key, value := range result.schema {
		said[key] = value
	}
	result.schema = said
	return &result, nil
}

func isEmpty(value reflect.Value) bool {
	switch value.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return value.Len() == 0
	case reflect.Struct:
		return false
	}
	return value.IsZero()
}
