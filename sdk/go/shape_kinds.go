package antiphon

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

func structShape(fields []field) *shape {
	properties, required := schema{}, []string{}
	for _, one := range fields {
		properties[one.name] = one.shape.schema
		if one.required {
			required = append(required, one.name)
		}
	}
	whole := schema{"type": "object", "properties": properties}
	if len(required) > 0 {
		whole["required"] = required
	}
	names := make([][]byte, len(fields))
	for number, one := range fields {
		names[number] = append(quoted(nil, one.name), ':')
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			object, ok := value.(map[string]any)
			if !ok {
				return expected("an object", value)
			}
			for _, one := range fields {
				part, present := object[one.name]
				if !present {
					if one.required {
						return &mismatch{message: "the field '" + one.name + "' is missing"}
					}
					continue
				}
				if wrong := one.shape.decode(part, into.FieldByIndex(one.index)); wrong != nil {
					return wrong.within(one.name)
				}
			}
			return nil
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			text = append(text, '{')
			begun := false
			for number, one := range fields {
				part := value.FieldByIndex(one.index)
				if one.omit != nil && one.omit(part) {
					continue
				}
				if begun {
					text = append(text, ',')
				}
				begun = true
				var wrong *mismatch
				if text, wrong = one.shape.encode(append(text, names[number]...), part); wrong != nil {
					return nil, wrong.within(one.name)
				}
			}
			return append(text, '}'), nil
		},
	}
}

func (s *shapes) array(kind reflect.Type) (*shape, error) {
	inner, err := s.part(kind.Elem())
	if err != nil {
		return nil, err
	}
	whole := schema{"type": "array"}
	if len(inner.schema) > 0 {
		whole["items"] = inner.schema
	}
	fixed := kind.Kind() == reflect.Array
	if fixed {
		whole["minItems"], whole["maxItems"] = kind.Len(), kind.Len()
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			items, ok := value.([]any)
			if !ok {
				return expected("an array", value)
			}
			if fixed && len(items) != kind.Len() {
				return &mismatch{message: fmt.Sprintf("expected %d values in an array", kind.Len())}
			}
			if !fixed {
				into.Set(reflect.MakeSlice(kind, len(items), len(items)))
			}
			for number, item := range items {
				if wrong := inner.decode(item, into.Index(number)); wrong != nil {
					return wrong.within(strconv.Itoa(number))
				}
			}
			return nil
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			text = append(text, '[')
			for number := range value.Len() {
				if number > 0 {
					text = append(text, ',')
				}
				var wrong *mismatch
				if text, wrong = inner.encode(text, value.Index(number)); wrong != nil {
					return nil, wrong.within(strconv.Itoa(number))
				}
			}
			return append(text, ']'), nil
		},
	}, nil
}

func mapShape(kind reflect.Type, inner *shape) *shape {
	whole := schema{"type": "object"}
	if len(inner.schema) > 0 {
		whole["additionalProperties"] = inner.schema
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			object, ok := value.(map[string]any)
			if !ok {
				return expected("an object", value)
			}
			into.Set(reflect.MakeMapWithSize(kind, len(object)))
			for name, part := range object {
				item := reflect.New(kind.Elem()).Elem()
				if wrong := inner.decode(part, item); wrong != nil {
					return wrong.within(name)
				}
				into.SetMapIndex(reflect.ValueOf(name).Convert(kind.Key()), item)
			}
			return nil
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			text = append(text, '{')
			names := value.MapKeys()
			slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
			for number, name := range names {
				if number > 0 {
					text = append(text, ',')
				}
				var wrong *mismatch
				if text, wrong = inner.encode(append(quoted(text, name.String()), ':'), value.MapIndex(name)); wrong != nil {
					return nil, wrong.within(name.String())
				}
			}
			return append(text, '}'), nil
		},
	}
}

func pointerShape(kind reflect.Type, inner *shape) *shape {
	whole := schema{"anyOf": []any{inner.schema, schema{"type": "null"}}}
	if len(inner.schema) == 0 {
		whole = schema{}
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			if value == nil {
				into.SetZero()
				return nil
			}
			made := reflect.New(kind.Elem())
			into.Set(made)
			return inner.decode(value, made.Elem())
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			if value.IsNil() {
				return append(text, "null"...), nil
			}
			return inner.encode(text, value.Elem())
		},
	}
}

var boolShape = &shape{
	schema: schema{"type": "boolean"},
	decode: func(value any, into reflect.Value) *mismatch {
		truth, ok := value.(bool)
		if !ok {
			return expected("a boolean", value)
		}
		into.SetBool(truth)
		return nil
	},
	encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
		return strconv.AppendBool(text, value.Bool()), nil
	},
}

// integerShape bounds the kinds that other languages would not expect to be bounded.
func integerShape(kind reflect.Type) *shape {
	bits := kind.Bits()
	unsigned := kind.Kind() >= reflect.Uint && kind.Kind() <= reflect.Uint64
	whole := schema{"type": "integer"}
	if unsigned {
		whole["minimum"] = 0
		if bits < 64 {
			whole["maximum"] = uint64(1)<<bits - 1
		}
	} else if bits < 64 {
		whole["minimum"], whole["maximum"] = -(int64(1) << (bits - 1)), int64(1)<<(bits-1)-1
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			number, ok := value.(json.Number)
			if !ok {
				return expected("an integer", value)
			}
			text := string(number)
			if strings.ContainsAny(text, ".eE") { // JSON Schema counts 1.0 among the integers
				float, err := number.Float64()
				if err != nil || float != math.Trunc(float) || math.Abs(float) > 1<<53 {
					return expected("an integer", value)
				}
				text = strconv.FormatFloat(float, 'f', 0, 64)
			}
			var err error
			if unsigned {
				var whole uint64
				whole, err = strconv.ParseUint(text, 10, bits)
				into.SetUint(whole)
			} else {
				var whole int64
				whole, err = strconv.ParseInt(text, 10, bits)
				into.SetInt(whole)
			}
			if err != nil {
				return &mismatch{message: fmt.Sprintf("expected an integer that fits %s", kind.Kind())}
			}
			return nil
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			if unsigned {
				return strconv.AppendUint(text, value.Uint(), 10), nil
			}
			return strconv.AppendInt(text, value.Int(), 10), nil
		},
	}
}

var floatShape = &shape{
	schema: schema{"type": "number"},
	decode: func(value any, into reflect.Value) *mismatch {
		number, ok := value.(json.Number)
		if !ok {
			return expected("a number", value)
		}
		float, err := number.Float64()
		if err != nil || into.OverflowFloat(float) {
			return &mismatch{message: "expected a finite number"}
		}
		into.SetFloat(float)
		return nil
	},
	encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
		float := value.Float()
		if math.IsNaN(float) || math.IsInf(float, 0) {
			return nil, &mismatch{message: "expected a finite number"}
		}
		return strconv.AppendFloat(text, float, 'g', -1, value.Type().Bits()), nil
	},
}

func stringShape(choices []string) *shape {
	whole := schema{"type": "string"}
	if choices != nil {
		whole = schema{"enum": choices}
	}
	choose := func(text string) *mismatch {
		if choices != nil && !slices.Contains(choices, text) {
			return &mismatch{message: "expected one of " + strings.Join(choices, ", ")}
		}
		return nil
	}
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			text, ok := value.(string)
			if !ok {
				return expected("a string", value)
			}
			into.SetString(text)
			return choose(text)
		},
		encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
			return quoted(text, value.String()), choose(value.String())
		},
	}
}

var bytesShape = &shape{
	schema: schema{"type": "string", "contentEncoding": "base64"},
	decode: func(value any, into reflect.Value) *mismatch {
		text, ok := value.(string)
		data, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			return expected("base64 text", value)
		}
		into.SetBytes(data)
		return nil
	},
	encode: func(text []byte, value reflect.Value) ([]byte, *mismatch) {
		text = append(text, '"')
		return append(base64.StdEncoding.AppendEncode(text, value.Bytes()), '"'), nil
	},
}

// anyShape leaves decoded JSON as encoding/json does: float64, string, bool, nil, []any, map[string]any.
var anyShape = &shape{
	schema: schema{},
	decode: func(value any, into reflect.Value) *mismatch {
		if plain := plainOf(value); plain != nil {
			into.Set(reflect.ValueOf(plain))
		} else {
			into.SetZero()
		}
		return nil
	},
	encode: encodeByLibrary,
}

func plainOf(value any) any {
	switch one := value.(type) {
	case json.Number:
		float, err := one.Float64()
		if err != nil {
			return one // beyond float64: as it is spelled
		}
		return float
	case []any:
		for number := range one {
			one[number] = plainOf(one[number])
		}
	case map[string]any:
		for name := range one {
			one[name] = plainOf(one[name])
		}
	}
	return value
}

// customShape is of a type that reads and writes its own JSON.
func customShape(whole schema) *shape {
	return &shape{
		schema: whole,
		decode: func(value any, into reflect.Value) *mismatch {
			text, err := marshal(value)
			if err == nil {
				err = json.Unmarshal(text, into.Addr().Interface())
			}
			if err != nil {
				return expected(into.Type().String(), value)
			}
			return nil
		},
		encode: encodeByLibrary,
	}
}

func encodeByLibrary(text []byte, value reflect.Value) ([]byte, *mismatch) {
	pointer := reflect.New(value.Type()) // whose methods may be those that write
	pointer.Elem().Set(value)
	made, err := marshal(pointer.Interface())
	if err != nil {
		return nil, &mismatch{message: fmt.Sprintf("%s cannot be written as JSON", value.Type())}
	}
	return append(text, made...), nil
}

// marshal writes JSON in the one form that travels: UTF-8, no blanks, nothing escaped for HTML.
func marshal(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

func quoted(text []byte, value string) []byte {
	made, err := marshal(value)
	if err != nil {
		panic(err) // no string is beyond the encoder
	}
	return append(text, made...)
}
